"""Variables as named arrays and a text, and back; what comes back is checked before it is used.

The text is the SHA-256 of a JSON document, and the document: the tree with the name, dtype, shape
and SHA-256 of each array, and the layouts.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dcjax._compose.stacked import Stacked
from dcjax._layout.json import Json, layout_from_json, layout_to_json
from dcjax._layout.layout import Path, path_of

# JSON takes some ten times its length when it is parsed.
TEXT_LIMIT = 16 * 2**20

_VERSION = 1
_DTYPES = {
    np.dtype(kind).name: np.dtype(kind).newbyteorder("<")
    for kind in (
        *(bool, "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"),
        *(jnp.bfloat16, jnp.float8_e3m4, jnp.float8_e4m3, jnp.float8_e4m3b11fnuz),
        *(jnp.float8_e4m3fn, jnp.float8_e4m3fnuz, jnp.float8_e5m2, jnp.float8_e5m2fnuz),
        jnp.float8_e8m0fnu,
    )
}


def to_text(variables: PyTree) -> tuple[str, dict[str, np.ndarray]]:
    """The text, and the arrays by their names: in C order, little-endian, on the host."""
    arrays: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    tree = _to_json(variables, (), arrays, wrong)
    if wrong:
        raise TypeError("dcjax.save writes nested dicts of arrays:\n  " + "\n  ".join(wrong))
    document = json.dumps({"version": _VERSION, "tree": tree})
    text = hashlib.sha256(document.encode()).hexdigest() + document
    if len(text) > TEXT_LIMIT:
        raise ValueError(
            f"the tree's description has {len(text)} bytes, and {TEXT_LIMIT} at most are read "
            "again: save its parts to files of their own"
        )
    return text, arrays


def from_text(text: str, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """The tree that the text describes, of numpy arrays and random keys."""
    digest, document = text[:64], text[64:]
    if len(text) > TEXT_LIMIT or hashlib.sha256(document.encode()).hexdigest() != digest:
        raise ValueError("its description does not have its SHA-256")
    content = json.loads(document)
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ValueError(f"it is not of version {_VERSION}, which this dcjax reads")
    arrays = dict(arrays)
    tree = _from_json(content.get("tree"), (), arrays)
    if arrays:
        raise ValueError(f"its tree does not have these arrays: {sorted(arrays)}")
    return tree


def name_of(path: Path) -> str:
    """A leaf's path as people read it."""
    return "/".join(path) or "the tree"


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of every entry, along one more axis: what stands for a dtype a format has not."""
    return array[..., None].view(np.uint8)


def _to_json(node: PyTree, path: Path, arrays: dict[str, np.ndarray], wrong: list[str]) -> Json:
    """A node's part of the document. Adds its arrays to `arrays`, and what is none to `wrong`."""
    if isinstance(node, Stacked):
        inner = _to_json(node.tree, path, arrays, wrong)
        if not wrong:
            _check_fit(node, path)
        return {"stacked": inner, "layout": layout_to_json(node.layout)}

    if isinstance(node, dict | flax.core.FrozenDict):
        wrong += [
            f"{name_of(path)}: keys are str, got {k!r}" for k in node if not isinstance(k, str)
        ]
        children = [(key, child) for key, child in node.items() if isinstance(key, str)]
        return {"dict": {k: _to_json(child, (*path, k), arrays, wrong) for k, child in children}}

    impl = None
    if isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
        impl, node = jax.random.key_impl(node), jax.random.key_data(node)
    problem = _problem(node, impl)
    if problem:
        wrong.append(f"{name_of(path)}: {problem}")
        return None
    array = np.asarray(node)
    array = array.astype(_DTYPES[array.dtype.name], order="C", copy=False)
    name = _array_name(path, len(arrays))
    arrays[name] = array
    return {
        "array": name,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "sha256": _digest(array),
        "impl": impl,
    }


def _problem(leaf: Any, impl: object) -> str:
    """Why this is no leaf of a file, or nothing."""
    if not isinstance(impl, str | None):
        return "random keys of an implementation that jax does not know by name"
    if isinstance(leaf, tuple | list):
        return (
            f"expected a dict or an array, got a {type(leaf).__name__}; save "
            "flax.serialization.to_state_dict(tree), and give what comes back to from_state_dict"
        )
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return f"expected a dict or an array, got {type(leaf).__name__}; try jax.numpy.asarray"
    if isinstance(leaf, np.ma.MaskedArray):
        return "a masked array, whose mask would be lost; try leaf.filled()"
    if leaf.dtype.name not in _DTYPES:
        return f"dtype {leaf.dtype} is not saved; cast it to one of {', '.join(_DTYPES)}"
    return ""


def _array_name(path: Path, number: int) -> str:
    """The path, where other programs can read it as one, else a number."""
    name = "/".join(path)
    plain = all(re.fullmatch(r"[\w-]+", key, re.ASCII) for key in path) and 0 < len(name) < 1000
    return name if plain and name != "__metadata__" else f"array {number}"


def _from_json(node: Json, path: Path, arrays: dict[str, np.ndarray]) -> PyTree:
    """The inverse of `_to_json`, which takes the arrays out of `arrays`."""
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
            "sha256": str(digest),
            "impl": str(impl) | (None as impl),
            **rest,
        } if not rest:
            if name not in arrays:
                raise ValueError(f"{name_of(path)}: the array {name!r} is missing, or used twice")
            array = _restored(arrays.pop(name), dtype, shape, name_of(path))
            if _digest(array) != digest:
                raise ValueError(f"{name_of(path)}: the array does not have its SHA-256")
            return array if impl is None else jax.random.wrap_key_data(jnp.array(array), impl=impl)
    raise ValueError(f"{name_of(path)}: this part of the tree's description is malformed")


def _restored(stored: np.ndarray, dtype: str, shape: list[int], name: str) -> np.ndarray:
    """The array, which is stored as it is or as its bytes."""
    kind = _DTYPES.get(dtype)
    if kind is None:
        raise ValueError(f"{name}: unknown dtype {dtype!r}")
    array = stored
    if stored.dtype == np.uint8 and list(stored.shape) == [*shape, kind.itemsize]:
        array = stored.view(kind)[..., 0]
    if array.dtype != kind or list(array.shape) != shape:
        raise ValueError(
            f"{name}: expected {dtype}{shape}, got {stored.dtype.name}{list(stored.shape)}"
        )
    if kind.name == "bool" and array.view(np.uint8).max(initial=0) > 1:
        raise ValueError(f"{name}: a bool that is neither 0 nor 1")
    return array


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(as_bytes(array).data).hexdigest()


def _check_fit(stacked: Stacked, path: Path) -> None:
    """A `ValueError` that lists every leaf which the layout does not have, or not of that shape."""
    subnets, leaves = len(stacked), jax.tree_util.tree_leaves_with_path(stacked.tree)
    got = {path_of(keys): leaf.shape for keys, leaf in leaves}
    expected = stacked.layout.stack_shapes
    wrong = [
        f"{name_of((*path, *p))}: expected {expected.get(p, 'none')}, got {got.get(p, 'none')}"
        for p in sorted(expected | got)
        if expected.get(p) != got.get(p)
    ]
    if wrong:
        raise ValueError(
            f"shapes that do not fit the layout of {subnets} sub-networks:\n  " + "\n  ".join(wrong)
        )
