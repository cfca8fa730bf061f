"""Fixtures of several test files."""

import pytest

from dcjax.native import NativeError, build


@pytest.fixture(scope="module")
def built():
    """The compiled convolutions, or a skip where they cannot be compiled."""
    try:
        build()
    except NativeError as error:
        pytest.skip(str(error))
