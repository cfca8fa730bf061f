"""Variables as named arrays and a description in JSON, and back.

The description holds the nested dicts, the layouts, and the name, dtype, shape and SHA-256 of every
array. It starts with its SHA-256. Everything is checked before it is used.
"""

import hashlib
import json
import re
from typing import Any, BinaryIO

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dcjax._compose.compose import check_shapes
from dcjax._compose.stacked import Stacked
from dcjax._files.formats import Format
from dcjax._layout.json import Json, layout_from_json, layout_to_json
from dcjax._layout.layout import Path

_VERSION = 1
DTYPES = {
    np.dtype(kind).name: np.dtype(kind).newbyteorder("<")
    for kind in (
        *"?bhiqBHIQefdFD",
        *(jnp.bfloat16, jnp.float8_e3m4, jnp.float8_e4m3, jnp.float8_e4m3b11fnuz),
        *(jnp.float8_e4m3fn, jnp.float8_e4m3fnuz, jnp.float8_e5m2, jnp.float8_e5m2fnuz),
        *(jnp.float8_e8m0fnu, jnp.int4, jnp.uint4),
    )
}


def write(file: BinaryIO, form: Format, tree: PyTree, **content: Json) -> None:
    """Write nested dicts of arrays, and JSON values, to a file.

    Raises:
      TypeError: the tree has other containers or leaves, or the values are not JSON; lists all.
    """
    arrays: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    content |= {"version": _VERSION, "tree": _to_json(tree, (), arrays, wrong)}
    if wrong:
        raise TypeError("expected nested dicts of arrays, got:\n  " + "\n  ".join(wrong))
    stored = {n: a if a.dtype.name in form.dtypes else _as_bytes(a) for n, a in arrays.items()}
    document = json.dumps(content)
    form.write(file, hashlib.sha256(document.encode()).hexdigest() + document, stored)


def read(data: bytes, form: Format) -> tuple[PyTree, dict[str, Json]]:
    """Return the tree and the values that `write` was given, from the file's bytes.

    The tree's leaves are JAX arrays; NumPy's where JAX would narrow them (64 bits without
    `jax_enable_x64`).

    Raises:
      Exception: of any type if the file has changed.
    """
    text, arrays = form.read(data)
    digest, document = text[:64], text[64:]
    if hashlib.sha256(document.encode()).hexdigest() != digest:
        raise ValueError("its description does not match its SHA-256")
    content = json.loads(document)
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ValueError(f"it is not of version {_VERSION}, which this dcjax reads")
    tree = _from_json(content.get("tree"), (), arrays)
    if arrays:
        raise ValueError(f"its tree does not have these arrays: {sorted(arrays)}")
    return tree, content


def name_of(path: Path) -> str:
    """Return a leaf's path for an error message."""
    return "/".join(path) or "the tree"


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
    return {**entry, "sha256": hashlib.sha256(_as_bytes(array).data).hexdigest(), "impl": impl}


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


def _from_json(node: Json, path: Path, arrays: dict[str, bytes]) -> PyTree:
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
            try:
                data = arrays.pop(name)
                array = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
            except (KeyError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"{name_of(path)}: the array {name!r} is missing, used twice, or not a "
                    f"{dtype}{shape}"
                ) from error
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError(f"{name_of(path)}: the array does not match its SHA-256")
            if array.dtype == bool:
                array = array.view(np.uint8) != 0  # NumPy expects bools to be of 0 and 1
            if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
                return array
            leaf = jnp.array(array)
            return jax.random.wrap_key_data(leaf, impl=impl) if impl else leaf
    raise ValueError(f"{name_of(path)}: this part of the tree's description is malformed")


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of every entry along a new last axis, for formats without the dtype."""
    return array[..., None].view(np.uint8)


def _check_fit(stacked: Stacked, path: Path) -> None:
    expected = stacked.layout.stack_shapes
    check_shapes(stacked.tree, expected, f"stack ({name_of(path)})")
