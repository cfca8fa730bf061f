"""Variables as named arrays and a description in JSON, and back.

The description holds the nested dicts, the layouts, and the name, dtype, shape and SHA-256 of every
array. It starts with its SHA-256. Everything is checked before it is used.
"""

import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dcjax._compose.compose import check_shapes
from dcjax._compose.stacked import Stacked
from dcjax._files.formats import Format, Read, as_bytes
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
_STATE_DICT = "flax.serialization.to_state_dict(tree)"
_LEAVES = (
    "{jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}"
)
_NAMES = {dtype: name for name, dtype in DTYPES.items()}  # `dtype.name` takes microseconds


def write(file: io.BufferedIOBase, form: Format, tree: PyTree, **content: Json) -> None:
    """Write nested dicts of arrays, and JSON values, to a file.

    Raises:
      TypeError: the tree has other containers or leaves, or the values are not JSON; lists all.
    """
    arrays: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    content |= {"version": _VERSION, "tree": _to_json(tree, (), arrays, wrong)}
    if wrong:
        raise TypeError("expected nested dicts of arrays, got:\n  " + "\n  ".join(wrong))
    stored = {
        name: array if _NAMES[array.dtype] in form.dtypes else as_bytes(array)
        for name, array in arrays.items()
    }
    document = json.dumps(content)
    form.write(file, hashlib.sha256(document.encode()).hexdigest() + document, stored)


def read(file: io.BufferedIOBase, form: Format) -> tuple[PyTree, dict[str, Json]]:
    """Return the tree and the values that `write` was given.

    The tree's leaves are JAX arrays; NumPy's where JAX would narrow them (64 bits without
    `jax_enable_x64`).

    Raises:
      Exception: of any type if the file has changed.
    """
    text, arrays = form.read(file)
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
            f"{name_of(path)}: keys are str, got {k!r}; save {_STATE_DICT} instead"
            for k in node
            if not isinstance(k, str)
        ]
        return {"dict": {k: _to_json(v, (*path, str(k)), arrays, wrong) for k, v in node.items()}}
    impl = None
    if isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
        impl, node = jax.random.key_impl(node), jax.random.key_data(node)
    if problem := _problem(node, impl):
        wrong.append(f"{name_of(path)}: {problem}")
        return None
    array = np.asarray(node)
    dtype = _name_of(array.dtype)
    array = array.astype(DTYPES[dtype], order="C", copy=False)
    # Other programs read the path as the array's name, if they can.
    name = "/".join(path)
    plain = re.fullmatch(r"[\w-]{1,200}(/[\w-]{1,200}){0,99}", name, re.ASCII)
    if not plain or name in arrays or name == "__metadata__":
        name = f"array {len(arrays)}"
    arrays[name] = array
    entry = {"array": name, "dtype": dtype, "shape": list(array.shape)}
    return {**entry, "sha256": hashlib.sha256(as_bytes(array).data).hexdigest(), "impl": impl}


def _name_of(dtype: Any) -> str:
    return _NAMES.get(dtype) or dtype.name


def _problem(leaf: Any, impl: object) -> str:
    """Return why this leaf cannot be saved, or nothing."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return f"{type(leaf).__name__}; {_remedy(leaf)}"
    if isinstance(leaf, np.ma.MaskedArray):
        return "a masked array; try leaf.filled()"
    if not isinstance(impl, str | None):
        return "random keys of an implementation that JAX does not know by name"
    if _name_of(leaf.dtype) not in DTYPES:
        return f"dtype {leaf.dtype}; cast it to one of {', '.join(DTYPES)}"
    return ""


def _remedy(node: Any) -> str:
    """Return what to save instead of a node that is not an array."""
    nnx = sys.modules.get("flax.nnx")  # if it is not imported, this is not of it
    if nnx is not None and isinstance(node, nnx.State):
        return f"save {_STATE_DICT.replace('tree', 'nnx.to_pure_dict(state)')} instead"
    if isinstance(flax.serialization.to_state_dict(node), dict):
        return f"save {_STATE_DICT} instead"
    if not jax.tree_util.all_leaves([node]):
        return f"save {_LEAVES} instead"
    if isinstance(node, Mapping):
        return "save dict(…) of it instead"
    return "try jax.numpy.asarray"


def _from_json(node: Json, path: Path, arrays: dict[str, Read]) -> PyTree:
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
                data = arrays.pop(name)(_size(dtype, shape))
                array = data.view(DTYPES[dtype]).reshape(shape)
            except (KeyError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"{name_of(path)}: the array {name!r} is missing, used twice, or not a "
                    f"{dtype}{shape}"
                ) from error
            if hashlib.sha256(data.data).hexdigest() != sha256:
                raise ValueError(f"{name_of(path)}: the array does not match its SHA-256")
            if array.dtype == bool:
                array = array.view(np.uint8) != 0  # NumPy expects bools to be of 0 and 1
            if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
                return array
            leaf = _to_jax(array)
            return jax.random.wrap_key_data(leaf, impl=impl) if impl else leaf
    raise ValueError(f"{name_of(path)}: this part of the tree's description is malformed")


def _size(dtype: str, shape: list[Json]) -> int:
    """Return the number of bytes of an array."""
    sizes = [size for size in shape if isinstance(size, int) and size >= 0]
    if len(sizes) < len(shape):
        raise ValueError(f"not a shape: {shape}")
    return math.prod(sizes) * DTYPES[dtype].itemsize


def _to_jax(array: np.ndarray | np.generic) -> jax.Array:
    """Return the array as JAX's, which on the CPU takes over the memory of a large one.

    `jax.numpy.array` is quicker for small arrays. Arrays without entries but with a large axis take
    it minutes.
    """
    return jnp.array(array) if 0 < array.nbytes < 2**16 else jax.device_put(array)


def _check_fit(stacked: Stacked, path: Path) -> None:
    expected = stacked.layout.stack_shapes
    check_shapes(stacked.tree, expected, f"stack ({name_of(path)})")


def _from_state_dict(like: Stacked, state: Any) -> Stacked:
    stacked = Stacked(flax.serialization.from_state_dict(like.tree, state), like.layout)
    _check_fit(stacked, ())
    return stacked


# So that `flax.serialization.to_bytes` and `from_bytes` take a `Stacked`, alone or within a tree.
flax.serialization.register_serialization_state(
    Stacked, lambda stacked: flax.serialization.to_state_dict(stacked.tree), _from_state_dict
)
