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


def whole_number(x: Any) -> int | None:
    """Return x as an int, or None if it is not an integer (bools are not)."""
    if isinstance(x, (bool, np.bool_)):
        return None
    try:
        return operator.index(x)
    except Exception:  # arrays of all libraries have `__index__`, and errors of their own
        return None


def check_subnets(subnets: Any) -> int:
    """Return K as an int; raise unless it is an integer of at least 1."""
    count = whole_number(subnets)
    if count is None:
        raise TypeError(f"the number of sub-networks must be an int, got {subnets!r}")
    if count < 1:
        raise ValueError(f"the number of sub-networks must be at least 1, got {count}")
    return count


def array_fault(x: Any, *, abstract: bool = False) -> str:
    """Say why JAX cannot compute with x, as a verb phrase; return "" if it can.

    With `abstract` a shape and a dtype are enough.
    """
    if isinstance(x, jax.Array):
        deleted = not abstract and not isinstance(x, Tracer) and x.is_deleted()
        return "is deleted: a jitted function was given it to donate" if deleted else ""
    if abstract and hasattr(x, "shape") and hasattr(x, "dtype"):
        known = isinstance(x.shape, tuple) and None not in map(whole_number, x.shape)
        return "" if known and _is_number(x.dtype) else f"is {shown(x)}, not an array of numbers"
    if isinstance(x, jax.ShapeDtypeStruct):
        return "is a jax.ShapeDtypeStruct, which has no values (jax.eval_shape takes those)"
    if isinstance(x, np.ma.MaskedArray):
        return "is a masked array: fill it first"
    if isinstance(x, (np.ndarray, np.generic, int, float, complex)):
        array = np.asarray(x)
        if not _is_number(array.dtype):
            return f"is an array of {array.dtype}, not of numbers"
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return "" if _fits(array, dtype) else f"has numbers beyond JAX's {dtype}"
    return "" if hasattr(x, "__jax_array__") else f"is {shown(x)}, not an array"


def array_of(name: str, x: Any) -> Array:
    """Return numbers in an array or in nested sequences as a JAX array."""
    given = x
    if not isinstance(x, (jax.Array, np.ndarray, np.generic, int, float, complex)):
        try:
            traced = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x))
            x = jnp.asarray(x) if traced else np.asarray(x)
        except Exception as error:
            raise TypeError(f"{name} must be numbers, got {shown(given)}: {error}") from error
    fault = array_fault(x)
    if not fault and jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key):
        fault = "is a random key"
    if fault:
        raise TypeError(f"{name} must be an array of numbers, and {shown(given)} {fault}")
    return jnp.asarray(x)


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
    tree: PyTree,
    expected: Mapping[Path, tuple[int, ...] | EllipsisType],
    what: str,
    *,
    abstract: bool = False,
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
        elif fault := array_fault(leaf, abstract=abstract):
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
    shape = None
    if isinstance(key, (jax.Array, np.ndarray)):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            shape = ()
        elif key.dtype == np.uint32:
            shape = jax.eval_shape(jax.random.PRNGKey, 0).shape
    if shape is None or key.shape != shape or array_fault(key):
        raise TypeError(
            f"key must be a random key such as jax.random.key(0), got {shown(key)}; {remedy}"
        )


def shown(x: Any) -> str:
    """Describe x in a message: its type, and its shape and dtype or a short repr."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{type(x).__name__} of shape {x.shape} and dtype {x.dtype}"
    return f"{type(x).__name__} {reprlib.repr(x)}"


def _is_number(dtype: Any) -> bool:
    """Tell whether JAX computes with the dtype: numbers, bools, random keys."""
    try:
        kinds = (np.number, np.bool_, jax.dtypes.prng_key)
        return any(jnp.issubdtype(dtype, kind) for kind in kinds)
    except TypeError:
        return False


def _fits(array: np.ndarray, dtype: np.dtype) -> bool:
    """Tell whether JAX's 32 bits hold the array: integers exactly, floats without overflow."""
    if dtype == array.dtype:
        return True
    with np.errstate(over="ignore", under="ignore"):
        cast = array.astype(dtype)
    if array.dtype.kind in "iu":
        return bool(np.all(cast == array))
    return bool(np.all(np.isfinite(cast) | ~np.isfinite(array)))
