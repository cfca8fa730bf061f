"""The small arrays that a run leaves in `DIR/report.npz`, and a report shows beside the results."""

import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, PyTree, UInt8

import dcjax
from dcjax.atomic import replacing

FILE = "report.npz"
SHOWN_IMAGES = 6
"""Test images that a report shows, as each sub-network sees them."""
_SEPARATOR = "|"


class Evidence(NamedTuple):
    """The arrays of a report, for C classes and K sub-networks.

    Attributes:
      classes: their names.
      images: some test images; `labels` their classes.
      views: the same images as each sub-network sees them.
      said: each sub-network's answer to each of them.
      confusion: counts of test images by true class and answer, of each global network.
      blocks: by the path of a kernel, root mean squares of its K×K blocks: before fine-tuning,
        after it, and of the change.
    """

    classes: tuple[str, ...]
    images: UInt8[np.ndarray, "n H W c"]
    labels: Int[np.ndarray, " n"]
    views: Float[np.ndarray, "K n h w d"]
    said: Int[np.ndarray, "K n"]
    confusion: Mapping[str, Int[np.ndarray, "C C"]]
    blocks: Mapping[str, Float[np.ndarray, "3 K K"]]


def confusion(
    labels: Int[np.ndarray, " N"], answers: Int[np.ndarray, " N"], classes: int
) -> Int[np.ndarray, "C C"]:
    """Return the counts of test images by their class (rows) and the answer (columns).

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    counts = np.bincount(classes * labels + answers, minlength=classes**2)
    return counts.reshape(classes, classes)


def block_sizes(
    layout: dcjax.Layout, before: PyTree, after: PyTree
) -> dict[str, Float[np.ndarray, "3 K K"]]:
    """Return the root mean squares of the blocks of every kernel that has off-diagonal blocks.

    Block (i, j) holds the weights from sub-network i's channels to sub-network j's.

    Args:
      layout: of the parameters.
      before: the composed network's parameters.
      after: the same after fine-tuning.

    Returns:
      By the kernels' paths: the blocks before, after, and of the difference.

    >>> layout = dcjax.Layout(2, ((("w",), dcjax.LeafLayout((dcjax.Order((dcjax.Run(1),)),) * 2)),))
    >>> sizes = block_sizes(layout, {"w": np.eye(2)}, {"w": np.array([[1.0, 0.5], [0, 1]])})
    >>> sizes["w"][1].tolist()
    [[1.0, 0.5], [0.0, 1.0]]
    """
    sizes = {}
    for path, leaf in layout.leaves:
        if leaf.has_off_diagonal:
            first, last = (
                np.asarray(functools.reduce(operator.getitem, path, tree), np.float64)
                for tree in (before, after)
            )
            measured = [_blocks(w, leaf.axes, layout.subnets) for w in (first, last, last - first)]
            sizes["/".join(path)] = np.stack(measured)
    return sizes


def _blocks(
    kernel: np.ndarray, axes: Sequence[dcjax.Order], subnets: int
) -> Float[np.ndarray, "K K"]:
    """Return the root mean square of each block, by the first and the last axis that grow."""
    split = [axis for axis, order in enumerate(axes) if not order.is_shared]
    squares = np.moveaxis(np.square(kernel), (split[0], split[-1]), (0, 1))
    squares = squares.reshape(*squares.shape[:2], -1).mean(axis=-1)
    rows, columns = (_own(axes[axis].indices(subnets)) for axis in (split[0], split[-1]))
    return np.sqrt([[squares[np.ix_(i, j)].mean() for j in columns] for i in rows])


def _own(indices: Int[np.ndarray, "K n"]) -> Int[np.ndarray, "K m"]:
    """Return the indices of each sub-network's own entries, without the shared ones."""
    return indices[:, indices[0] != indices[-1]]


def write(folder: Path, evidence: Evidence) -> None:
    """Keep the evidence in a run's folder."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in evidence._asdict().items():
        if isinstance(value, Mapping):
            arrays |= {f"{name}{_SEPARATOR}{key}": array for key, array in value.items()}
        else:
            arrays[name] = np.asarray(value)
    with replacing(folder / FILE) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read(folder: Path) -> Evidence | None:
    """Return the evidence that a run left in its folder; None if it left none.

    Raises:
      ValueError: the file is damaged, or is another file.
    """
    if not (folder / FILE).is_file():
        return None
    try:
        with np.load(folder / FILE, allow_pickle=False) as file:
            arrays = dict(file)
        below: dict[str, dict[str, np.ndarray]] = {"confusion": {}, "blocks": {}}
        for name in [name for name in arrays if _SEPARATOR in name]:
            field, _, key = name.partition(_SEPARATOR)
            below[field][key] = arrays.pop(name)
        arrays["classes"] = tuple(arrays["classes"].tolist())  # type: ignore[assignment]
        return Evidence(**arrays, **below)  # type: ignore[arg-type]
    except Exception as error:  # zipfile and NumPy raise many types
        raise ValueError(f"{folder / FILE} is damaged: {error}") from error
