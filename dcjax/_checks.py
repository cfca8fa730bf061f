"""What public functions are given: whole numbers, arrays, keys and trees of arrays."""

import operator
import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from dcjax._layout.layout import Path, path_of

PyTree = Any


def whole_number(x: Any) -> int | None:
    """x as an int; None for what is none, truth values among them."""
    if isinstance(x, (bool, np.bool_)):
        return None
    try:
        return operator.index(x)
    except Exception:  # arrays of all libraries have `__index__`, and errors of their own
        return None


def check_subnets(subnets: Any) -> int:
    """K as an int of at least 1; a `ValueError` or `TypeError` that says what it is otherwise."""
    count = whole_number(subnets)
    if count is None:
        raise TypeError(f"the number of sub-networks is an int, got {subnets!r}")
    if count < 1:
        raise ValueError(f"the number of sub-networks is at least 1, got {count}")
    return count


def array_fault(x: Any, *, abstract: bool = False) -> str:
    """What is wrong with an array that JAX is to compute with, as a verb's phrase; or nothing.

    With `abstract` only shapes and dtypes are needed.
    """
    if isinstance(x, jax.Array):
        deleted = not abstract and not isinstance(x, Tracer) and x.is_deleted()
        return "is deleted: a jitted function was given it to donate" if deleted else ""
    if abstract and hasattr(x, "shape") and hasattr(x, "dtype"):
        known = isinstance(x.shape, tuple) and None not in map(whole_number, x.shape)
        return "" if known and _is_number(x.dtype) else f"is {shown(x)}, no array of numbers"
    if isinstance(x, jax.ShapeDtypeStruct):
        return "is a jax.ShapeDtypeStruct, which has no values (jax.eval_shape takes those)"
    if isinstance(x, np.ma.MaskedArray):
        return "is a masked array: fill it first"
    if isinstance(x, (np.ndarray, np.generic, int, float, complex)):
        array = np.asarray(x)
        if not _is_number(array.dtype):
            return f"is an array of {array.dtype}, no numbers"
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return "" if _fits(array, dtype) else f"has numbers beyond JAX's {dtype}"
    return "" if hasattr(x, "__jax_array__") else f"is {shown(x)}, no array"


def array_of(name: str, x: Any) -> Array:
    """Numbers in an array or in (nested) sequences, as JAX holds them; else a `TypeError`."""
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
    """The dtype that a leaf has in JAX."""
    own = isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))
    return leaf.dtype if own else jnp.result_type(leaf)


def same_kind(a: Any, b: Any) -> bool:
    """Whether both dtypes are of floats, of integers, of truth values, …."""
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_, jax.dtypes.prng_key)
    return any(jnp.issubdtype(a, kind) and jnp.issubdtype(b, kind) for kind in kinds)


def leaves_of(
    tree: PyTree, what: str, is_leaf: Callable[[Any], bool] | None = None
) -> dict[Path, Any]:
    """A tree's leaves by their paths; a `TypeError` where it is no tree."""
    try:
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    except Exception as error:  # keys that cannot be sorted, a container's own complaint
        raise TypeError(f"the {what} cannot be read as a pytree: {error}") from error
    return {path_of(path): leaf for path, leaf in leaves}


def check_key(key: Any, remedy: str) -> None:
    """A `TypeError` unless it is one random key, typed or raw."""
    shape = None
    if isinstance(key, (jax.Array, np.ndarray)):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            shape = ()
        elif key.dtype == np.uint32:
            shape = jax.eval_shape(jax.random.PRNGKey, 0).shape
    if shape is None or key.shape != shape or array_fault(key):
        raise TypeError(
            f"key is a random key such as jax.random.key(0), got {shown(key)}; {remedy}"
        )


def shown(x: Any) -> str:
    """x for a message: its type, and what fits of the rest."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{type(x).__name__} of shape {x.shape} and dtype {x.dtype}"
    return f"{type(x).__name__} {reprlib.repr(x)}"


def _is_number(dtype: Any) -> bool:
    """Whether JAX computes with it: numbers, truth values, random keys."""
    try:
        kinds = (np.number, np.bool_, jax.dtypes.prng_key)
        return any(jnp.issubdtype(dtype, kind) for kind in kinds)
    except TypeError:
        return False


def _fits(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether no integer is cut and no float overflows, where JAX has 32 bits for 64."""
    if dtype == array.dtype:
        return True
    with np.errstate(over="ignore", under="ignore"):
        cast = array.astype(dtype)
    if array.dtype.kind in "iu":
        return bool(np.all(cast == array))
    return bool(np.all(np.isfinite(cast) | ~np.isfinite(array)))
