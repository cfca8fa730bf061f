"""How many cases a soak or a fuzz test takes: few in every run, many behind the marker `long`."""

import os

import pytest

SEED = int(os.environ.get("DCJAX_SOAK_SEED", "0"))


def short_and_long(short: int, long: int, variable: str) -> pytest.MarkDecorator:
    """Parametrise a test by `count`; an environment variable overrides that of the long form."""
    many = int(os.environ.get(variable, long))
    return pytest.mark.parametrize("count", [short, pytest.param(many, marks=pytest.mark.long)])
