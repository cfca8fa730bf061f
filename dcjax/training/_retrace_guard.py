"""A guard against compiling the same twice."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises `AssertionError` if JAX traces it again for arguments of the same
    types: whatever makes it do so may do it at every step.

    Others are traced as they come, and what failed may be tried again.
    """
    traced = set()

    @functools.wraps(function)
    def checked(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        if not any(isinstance(leaf, Tracer) for leaf in leaves):  # jax.disable_jit
            return function(*args)
        types = structure, *map(jax.typeof, leaves)
        if types in traced:
            raise AssertionError(
                f"{function.__name__} is traced again for arguments of the same types. A phase is "
                "for one configuration of JAX (jax.default_matmul_precision, …), and does not "
                "outlive jax.clear_caches(): make another"
            )
        result = function(*args)
        traced.add(types)
        return result

    return checked
