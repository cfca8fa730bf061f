"""The pictures in the documentation are those that their scripts draw."""

import pathlib
import runpy

import pytest

PICTURES = pathlib.Path(__file__).parent.parent / "docs" / "pictures"


@pytest.mark.parametrize("script", sorted(PICTURES.glob("*.py")), ids=lambda script: script.stem)
def test_a_picture_is_what_its_script_draws(script):
    drawn = runpy.run_path(str(script))["svg"]()
    assert drawn == script.with_suffix(".svg").read_text(encoding="utf-8")
