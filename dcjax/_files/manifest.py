"""Variables as named arrays and a description in JSON, and back.

The description holds the nested dicts, the layouts, and the name, dtype, shape and SHA-256 of every
array. It starts with its SHA-256. Everything is checked before it is used.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dcjax._compose.compose import check_shapes
from dcjax._compose.stacked import Stacked
from dcjax._layout.json import Json, layout_from_json, layout_to_json
from dcjax._layout.layout import Path

_VERSION = 1
DTYPES = {
    np.dtype(kind).name: np.dtype(kind).newbyteorder("<")
    for kind in (
        *(bool, "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"),
        *(jnp.bfloat16, jnp.float8_e3m4, jnp.float8_e4m3, jnp.float8_e4m3b11fnuz),
        *(jnp.float8_e4m3fn, jnp.float8_e4m3fnuz, jnp.float8_e5m2, jnp.float8_e5m2fnuz),
        *(jnp.float8_e8m0fnu, jnp.int4, jnp.uint4),
    )
}


def seal(content: dict[str, Json]) -> str:
    """Return a SHA-256 followed by the content as JSON."""
    document = json.dumps({"version": _VERSION, **content})
    return hashlib.sha256(document.encode()).hexdigest() + document


def unseal(text: str) -> dict[str, Json]:
    """Return the content that `seal` was given; a `ValueError` if the text has changed."""
    digest, document = text[:64], text[64:]
    if hashlib.sha256(document.encode()).hexdigest() != digest:
        raise ValueError("its description does not match its SHA-256")
    content = json.loads(document)
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ValueError(f"it is not of version {_VERSION}, which this dcjax reads")
    return content


def describe(variables: PyTree) -> tuple[Json, dict[str, np.ndarray]]:
    """Return the description, and the arrays by name: on the host, in C order, little-endian."""
    arrays: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    description = _to_json(variables, (), arrays, wrong)
    if wrong:
        raise TypeError("expected nested dicts of arrays, got:\n  " + "\n  ".join(wrong))
    return description, arrays


def restore(description: Json, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """Return the tree that `describe` was given, of NumPy arrays and random keys."""
    arrays = dict(arrays)
    tree = _from_json(description, (), arrays)
    if arrays:
        raise ValueError(f"its tree does not have these arrays: {sorted(arrays)}")
    return tree


def name_of(path: Path) -> str:
    """Return a leaf's path for an error message."""
    return "/".join(path) or "the tree"


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of every entry along a new last axis, for formats without the dtype."""
    return array[..., None].view(np.uint8)


def pack(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a copy of all bytes as one array, and a zero, because Orbax refuses empty arrays."""
    parts = [as_bytes(array).reshape(-1) for array in arrays.values()]
    return np.concatenate([*parts, np.zeros(1, np.uint8)])


def unpack(description: Json, data: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays that `pack` was given, by the sealed description of a flat dict."""
    arrays, start = {}, 0
    for entry in description["dict"].values():
        kind = DTYPES[entry["dtype"]]
        end = start + kind.itemsize * math.prod(entry["shape"])
        # A copy, because views at odd places are not aligned.
        arrays[entry["array"]] = data[start:end].copy().view(kind).reshape(entry["shape"])
        start = end
    return arrays


def is_narrowed(leaf: Any) -> bool:
    """Return whether the leaf is a NumPy array whose dtype JAX would change, as it is set now."""
    if not isinstance(leaf, np.ndarray):
        return False
    return jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype


def _to_json(node: PyTree, path: Path, arrays: dict[str, np.ndarray], wrong: list[str]) -> Json:
    """Return a node's description. Adds its arrays to `arrays`, and other leaves to `wrong`."""
    if isinstance(node, Stacked):
        inner = _to_json(node.tree, path, arrays, wrong)
        if not wrong:
            _check_fit(node, path)
        return {"stacked": inner, "layout": layout_to_json(node.layout)}
    if isinstance(node, dict | flax.core.FrozenDict):
        wrong += [
            f"{name_of(path)}: keys are str, got {k!r}" for k in node if not isinstance(k, str)
        ]
        return {"dict": {k: _to_json(v, (*path, str(k)), arrays, wrong) for k, v in node.items()}}
    impl = None
    if isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
        impl, node = jax.random.key_impl(node), jax.random.key_data(node)
    if problem := _problem(node, impl):
        wrong.append(f"{name_of(path)}: {problem}")
        return None
    array = np.asarray(node)
    array = array.astype(DTYPES[array.dtype.name], order="C", copy=False)
    # Other programs read the path as the array's name, if they can.
    name = "/".join(path)
    plain = re.fullmatch(r"[\w-]{1,200}(/[\w-]{1,200}){0,99}", name, re.ASCII)
    if not plain or name in arrays or name == "__metadata__":
        name = f"array {len(arrays)}"
    arrays[name] = array
    entry = {"array": name, "dtype": array.dtype.name, "shape": list(array.shape)}
    return {**entry, "sha256": _digest(array), "impl": impl}


def _problem(leaf: Any, impl: object) -> str:
    """Return why this leaf cannot be saved, or nothing."""
    if isinstance(leaf, tuple | list):
        return f"a {type(leaf).__name__}; save flax.serialization.to_state_dict(tree) instead"
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return f"{type(leaf).__name__}; try jax.numpy.asarray"
    if isinstance(leaf, np.ma.MaskedArray):
        return "a masked array; try leaf.filled()"
    if not isinstance(impl, str | None):
        return "random keys of an implementation that JAX does not know by name"
    if leaf.dtype.name not in DTYPES:
        return f"dtype {leaf.dtype}; cast it to one of {', '.join(DTYPES)}"
    return ""


def _from_json(node: Json, path: Path, arrays: dict[str, np.ndarray]) -> PyTree:
    """Return the tree of a description; takes its arrays out of `arrays`."""
    match node:
        case {"dict": dict(children), **rest} if not rest:
            return {key: _from_json(child, (*path, key), arrays) for key, child in children.items()}
        case {"stacked": inner, "layout": layout, **rest} if not rest:
            stacked = Stacked(_from_json(inner, path, arrays), layout_from_json(layout))
            _check_fit(stacked, path)
            return stacked
        case {
            "array": str(name),
            "dtype": str(dtype),
            "shape": list(shape),
            "sha256": str(sha256),
            "impl": str() | None as impl,
            **rest,
        } if not rest:
            if name not in arrays or dtype not in DTYPES:
                raise ValueError(
                    f"{name_of(path)}: the dtype {dtype!r} is unknown, or the array {name!r} "
                    "is missing or used twice"
                )
            array = _restored(arrays.pop(name), DTYPES[dtype], shape)
            if array is None or _digest(array) != sha256:
                raise ValueError(
                    f"{name_of(path)}: the array is not a {dtype}{shape} with its SHA-256"
                )
            return array if not impl else jax.random.wrap_key_data(jnp.array(array), impl=impl)
    raise ValueError(f"{name_of(path)}: this part of the tree's description is malformed")


def _restored(array: np.ndarray, kind: np.dtype, shape: list[int]) -> np.ndarray | None:
    """Return the array, which may be stored as bytes; None if its dtype or shape is wrong."""
    if array.dtype == np.uint8 and list(array.shape) == [*shape, kind.itemsize]:
        array = array.view(kind)[..., 0]
    is_same = array.dtype == kind and list(array.shape) == shape
    # NumPy's behaviour is undefined for bools of other bytes.
    is_valid = kind.kind != "b" or (as_bytes(array) <= 1).all()
    return array if is_same and is_valid else None


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(as_bytes(array).data).hexdigest()


def _check_fit(stacked: Stacked, path: Path) -> None:
    expected = stacked.layout.stack_shapes
    check_shapes(stacked.tree, expected, f"stack ({name_of(path)})", abstract=True)
