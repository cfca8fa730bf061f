"""Variables in one file, for exchange with people one need not trust: no pickle anywhere."""

import os
import stat

import jax
import numpy as np
from jaxtyping import PyTree

from dcjax._files.formats import format_of
from dcjax._files.manifest import name_of, read, write
from dcjax._layout.layout import path_of
from dcjax.atomic import replacing


class FileError(ValueError):
    """A damaged file, or not a file of `dcjax.save`; the message gives its path and the reason."""


def save(path: str | os.PathLike[str], variables: PyTree) -> None:
    """Write variables to a file for `dcjax.load`.

    Both formats hold plain arrays, which other programs read under names such as
    `params/Dense_0/kernel`, and a description of the tree and its layouts; neither uses pickle.
    Arrays keep their dtypes; those that a format lacks (bfloat16 and float8 in .npz) are stored as
    bytes along a new last axis. The file appears, or replaces an older one, whole or not at all.

    Args:
      path: the file to write, ending in `.npz` or `.safetensors`.
      variables: a `Stacked`, a nested dict with str keys, or such a dict with `Stacked` nodes at
        any depth. Its leaves are JAX or NumPy arrays, or typed random keys.

    Raises:
      TypeError: the tree has other containers or leaves; lists all of them.
      ValueError: the suffix is not one of these, or a `Stacked` does not fit its layout.

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
    form = format_of(path)
    with replacing(path) as file:
        write(file, form, variables)


def load(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> PyTree:
    """Return the variables in a file of `dcjax.save`, checked before they are used.

    Nothing in the file is executed. Names, dtypes, shapes and layouts are checked, and every array
    against its SHA-256. That finds damage; it does not tell who wrote the file.

    Args:
      path: the file, ending in `.npz` or `.safetensors`.
      max_bytes: the size of the largest file to read; None for no limit.

    Returns:
      Nested dicts of JAX arrays, and `Stacked` nodes with equal layouts. A `FrozenDict` comes back
      as a dict.

    Raises:
      FileError: the file is damaged, larger than `max_bytes`, or not one of `dcjax.save`.
      FileNotFoundError: the file does not exist.
      ValueError: an array has 64 bits and JAX is set to 32, or the suffix is not one of these.

    >>> import dcjax, jax, os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "weights.npz")
    ...     dcjax.save(path, {"params": {"bias": jax.numpy.arange(3)}})
    ...     dcjax.load(path, max_bytes=10_000)
    {'params': {'bias': Array([0, 1, 2], dtype=int32)}}
    """
    form = format_of(path)
    with open(os.path.expanduser(path), "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FileError(f"{os.fspath(path)} is a folder, a FIFO or a device, not a file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise FileError(
                f"{os.fspath(path)} has {status.st_size} bytes, more than max_bytes={max_bytes}; "
                "give a larger one if you trust the file"
            )
        try:
            tree, _ = read(file, form)
        except Exception as error:  # whatever the parsers raise, the contents are wrong
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise FileError(
                f"{os.fspath(path)} is damaged, or not a file of dcjax.save: {reason[:1000]}. Get "
                "it again from its source"
            ) from error
    if not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree)):
        return tree
    wide = [
        f"{name_of(path_of(path))}: {leaf.dtype}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if isinstance(leaf, np.ndarray)  # JAX would narrow it
    ]
    raise ValueError(
        f"{os.fspath(path)} has 64-bit arrays, which JAX would make 32-bit: set "
        'jax.config.update("jax_enable_x64", True), or save them as 32 bits:\n  '
        + "\n  ".join(wide)
    )


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for the writer of a FIFO."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
