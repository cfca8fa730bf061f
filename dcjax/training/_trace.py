"""A guard against compiling the same twice."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dcjax._checks import dtype_of


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises `AssertionError` if JAX traces it again for arguments of the same
    shapes and dtypes: whatever makes it do so would do it at every step.

    Other shapes are traced as they come, and what failed may be tried again.
    """
    traced = set()

    @functools.wraps(function)
    def checked(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        kinds = structure, *((jnp.shape(leaf), dtype_of(leaf)) for leaf in leaves)
        if kinds in traced:
            raise AssertionError(
                f"{function.__name__} is traced again for arguments of the same shapes and dtypes. "
                "Is a phase used under two configurations of JAX, such as "
                "jax.default_matmul_precision? Make one for each"
            )
        result = function(*args)
        traced.add(kinds)
        return result

    return checked
