"""Variables in one file, for exchange with people one need not trust: no pickle anywhere."""

import os
import pathlib
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dcjax._files.formats import container_of
from dcjax._files.manifest import as_bytes, from_text, name_of, to_text
from dcjax._layout.layout import path_of


class FileError(ValueError):
    """The file is damaged, or not one of `dcjax.save`; names it, the leaf and the reason."""


def save(path: str | os.PathLike[str], variables: PyTree) -> None:
    """Write variables to a file that `dcjax.load` reads, and that may come from anywhere.

    The path's suffix names the format: `.npz` (numpy's) or `.safetensors`, which needs the package
    `safetensors` (`pip install 'dcjax[safetensors]'`). Both are plain arrays, which other programs
    read under names such as `params/Dense_0/kernel`, with a description of the tree and the layout;
    neither has pickle in it. dtypes are kept; what a format does not have (in .npz bfloat16 and
    float8) stands there as bytes, with one axis more.

    The file appears as a whole or not at all: it is written beside its place under another name,
    and takes the place of an older one when all is on the disk.

    Args:
      path: where to, ending in `.npz` or `.safetensors`.
      variables: a `Stacked`, a nested dict with str keys, or such a dict with `Stacked` nodes at
        any depth. Its leaves are jax or numpy arrays, typed random keys among them.

    Raises:
      TypeError: the tree has other containers or leaves; lists all of them.
      ValueError: the suffix is another, or a `Stacked` does not fit its layout.
      ImportError: the package safetensors is needed, and is not there.

    >>> import dcjax, jax, os, tempfile
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "subnets.npz")
    ...     dcjax.save(path, {"step": jax.numpy.int32(7), "variables": stacked})
    ...     back = dcjax.load(path)
    >>> print(back["step"], back["variables"].layout == stacked.layout)
    7 True
    """
    container = container_of(path)
    text, arrays = to_text(variables)
    stored = {
        name: array if array.dtype.name in container.dtypes else as_bytes(array)
        for name, array in arrays.items()
    }
    target = pathlib.Path(path)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            container.write(file, text, stored)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> PyTree:
    """The variables in a file of `dcjax.save`, checked before they are used.

    Nothing in the file is executed, and no array is made before it is known that the file has all
    of its bytes. Names, dtypes, shapes and layouts are checked, and every array against its
    SHA-256. That finds damage; it does not say who wrote the file, nor whether the weights are any
    good.

    Args:
      path: the file, ending in `.npz` or `.safetensors`.
      max_bytes: the size of the largest file that is read; any, if None.

    Returns:
      What was saved: nested dicts of jax arrays, and `Stacked` nodes with equal layouts where there
      were some. A `FrozenDict` comes back as a dict.

    Raises:
      FileError: the file is damaged, larger than `max_bytes`, or not one of `dcjax.save`.
      FileNotFoundError: there is no such file.
      ValueError: an array has 64 bits and jax is set to 32, or the suffix is another.
      ImportError: the package safetensors is needed, and is not there.

    >>> import dcjax, jax, os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "weights.npz")
    ...     dcjax.save(path, {"params": {"bias": jax.numpy.arange(3)}})
    ...     dcjax.load(path, max_bytes=10_000)
    {'params': {'bias': Array([0, 1, 2], dtype=int32)}}
    """
    container = container_of(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise FileError(f"{os.fspath(path)}: {size} bytes, and max_bytes={max_bytes}")
        data = file.read()
    try:
        tree = from_text(*container.read(data))
    except Exception as error:  # whatever the parsers raise, it is the contents that are wrong
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise FileError(
            f"{os.fspath(path)} is damaged, or not a file of dcjax.save: {reason[:1000]}. Get it "
            "again from where it came from"
        ) from error
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    wide = [f"{name_of(path_of(p))}: {leaf.dtype}" for p, leaf in leaves if _is_narrowed(leaf)]
    if wide:
        raise ValueError(
            f"{os.fspath(path)} has arrays of 64 bits, which jax makes 32 unless told otherwise: "
            'jax.config.update("jax_enable_x64", True), or save them as 32 bits:\n  '
            + "\n  ".join(wide)
        )
    return jax.tree.map(lambda x: jnp.array(x) if isinstance(x, np.ndarray) else x, tree)


def _is_narrowed(leaf: Any) -> bool:
    """Whether jax, as it is set now, would make the array one of another dtype."""
    if not isinstance(leaf, np.ndarray):
        return False
    return jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
