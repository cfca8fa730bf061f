"""A guard against compiling twice."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import chex

_numbers = itertools.count()


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises `AssertionError` if JAX traces it a second time.

    chex counts the traces of a *source location* in the whole process, so a second phase made by
    the same line would count as the first one's retrace. A name of its own for every phase keeps
    them apart. (The name that the compiled program gets is the function's, always the same: it is
    part of the key of JAX's compilation cache.)
    """

    @functools.wraps(function)
    def numbered(*args: Any) -> Any:
        return function(*args)

    numbered.__name__ = f"{function.__name__} of phase {next(_numbers)}"
    checked = chex.assert_max_traces(numbered, n=1)
    checked.__name__ = function.__name__
    return checked
