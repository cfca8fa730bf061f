"""A guard against compiling the same program twice."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make the function raise `AssertionError` if JAX traces it again for the same types.

    A cause of a second trace may cause one at every step. The function may be traced for other
    types, and again after a trace that failed.
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
                f"{function.__name__} is traced again for arguments of the same types. A trainer "
                "belongs to one configuration of JAX (jax.default_matmul_precision, …) and does "
                "not survive jax.clear_caches(): make another one"
            )
        result = function(*args)
        traced.add(types)
        return result

    return checked
