"""The pictures in the documentation are those that their scripts draw."""

import pathlib
import runpy

PICTURES = pathlib.Path(__file__).parent.parent / "docs" / "pictures"


def test_the_picture_of_the_method_is_what_its_script_draws():
    drawn = runpy.run_path(str(PICTURES / "method.py"))["svg"]()
    assert drawn == (PICTURES / "method.svg").read_text(encoding="utf-8")
