"""Checks of arguments: integers, arrays, random keys, and trees of arrays."""

import operator
import reprlib
from collections.abc import Callable, Mapping
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from dcjax._layout.layout import Path, path_of


def check_subnets(subnets: Any) -> int:
    """Return K as an int; raise unless it is an integer of at least 1."""
    try:
        count = int(operator.index(subnets))
    except Exception as error:  # arrays of all libraries have `__index__`, and errors of their own
        raise TypeError(f"the number of sub-networks must be an int, got {subnets!r}") from error
    if not 1 <= count < 2**31:
        raise ValueError(f"expected a number of sub-networks below 2³¹ and at least 1, got {count}")
    return count


def array_fault(x: Any) -> str:
    """Say why JAX cannot compute with x, as a verb phrase; return "" if it can."""
    try:
        jax.typeof(x)
    except (TypeError, ValueError, OverflowError) as error:
        return f"is {shown(x)}, not an array of numbers: {error}"
    # JAX cuts NumPy's 64 bits to 32, where large numbers would become others, or infinite.
    if isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind in "iuf":
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        with np.errstate(over="ignore", under="ignore"):
            cut = x.astype(dtype)
        fits = np.isfinite(cut) == np.isfinite(x) if x.dtype.kind == "f" else cut == x
        if not np.all(fits):
            return f"has numbers beyond JAX's {dtype}"
    return ""


def has_values(x: Any) -> bool:
    """Return whether an array has values: it is neither abstract nor deleted."""
    if isinstance(x, jax.Array) and not isinstance(x, Tracer):
        return not x.is_deleted()
    return not isinstance(x, jax.ShapeDtypeStruct)


def array_of(name: str, x: Any) -> Array:
    """Return numbers in an array or in nested sequences as a JAX array."""
    try:
        array = jnp.asarray(x)
    except Exception as error:  # JAX and NumPy raise errors of many types for data without numbers
        raise TypeError(f"{name} must be numbers, got {shown(x)}: {error}") from error
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{name} must be numbers, got a random key")
    return array


def dtype_of(leaf: Any) -> Any:
    """Return the dtype that a leaf has in JAX."""
    own = isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))
    return leaf.dtype if own else jnp.result_type(leaf)


def same_kind(a: Any, b: Any) -> bool:
    """Tell whether both dtypes are floats, or integers, or bools, and so on."""
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_, jax.dtypes.prng_key)
    return any(jnp.issubdtype(a, kind) and jnp.issubdtype(b, kind) for kind in kinds)


def leaves_of(
    tree: PyTree, what: str, is_leaf: Callable[[Any], bool] | None = None
) -> dict[Path, Any]:
    """Return a tree's leaves by their paths; raise `TypeError` if it cannot be read."""
    try:
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    except Exception as error:  # such as keys that cannot be sorted
        raise TypeError(f"the {what} cannot be read as a pytree: {error}") from error
    return {path_of(path): leaf for path, leaf in leaves}


def compare_leaves(
    tree: PyTree, expected: Mapping[Path, tuple[int, ...] | EllipsisType], what: str
) -> tuple[dict[Path, Any], list[str]]:
    """Return the leaves by their paths, and a line for each that is not as expected.

    A leaf can be missing, unexpected, not an array, or of another shape; `...` stands for any.
    """
    got = leaves_of(tree, what)
    wrong = [f"{path_name(path)}: missing" for path in expected if path not in got]
    # Each path is hashed once: hashing takes most of the time for a small network.
    for path, leaf in got.items():
        if path not in expected and path[:-1] in expected:
            wrong.append(f"{path_name(path)}: has metadata; flax.linen.meta.unbox(tree) removes it")
        elif (shape := expected.get(path)) is None:
            wrong.append(f"{path_name(path)}: not expected")
        elif fault := array_fault(leaf):
            wrong.append(f"{path_name(path)} {fault}")
        elif shape is not ... and (found := jnp.shape(leaf)) != shape:
            wrong.append(f"{path_name(path)}: expected shape {shape}, got {found}")
    return got, wrong


def raise_listed(what: str, wrong: list[str], remedy: str = "") -> None:
    """Raise a `ValueError` that lists all that is wrong, if anything is."""
    if wrong:
        raise ValueError("\n  ".join([what, *wrong]) + ("\n" + remedy if remedy else ""))


def path_name(path: Path) -> str:
    """Return a leaf's path as one word."""
    return "/".join(path) or "the leaf"


def check_key(key: Any, remedy: str) -> None:
    """Refuse anything but one random key, typed or raw."""
    try:
        jax.eval_shape(jax.random.bits, key)
    except Exception as error:  # of many types, for what is not an array at all
        raise TypeError(
            f"key must be a random key such as jax.random.key(0), got {shown(key)}; {remedy}"
        ) from error


def shown(x: Any) -> str:
    """Describe x in a message: its type, and its shape and dtype or a short repr."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{type(x).__name__} of shape {x.shape} and dtype {x.dtype}"
    return f"{type(x).__name__} {' '.join(reprlib.repr(x).split())}"
