"""Seeded, class-balanced parts of a split."""

import numpy as np
from jaxtyping import Int

from experiments.data.types import DataError, Split


def subset(split: Split, size: int | None, seed: int, classes: int) -> Split:
    """Return a class-balanced random part of a split, in the split's order.

    The classes are shuffled, and the images of each class; then each class in turn gives one image
    until there are `size`. So the classes' counts differ by at most one, unless a class runs out of
    images. With one seed, smaller subsets are parts of larger ones.

    Args:
      split: N images and their labels.
      size: the number of images; None for all.
      seed: of the random choice.
      classes: the number of classes C.

    Returns:
      A split of `size` images.

    Raises:
      DataError: the size is above N or below 1.

    >>> split = Split(np.zeros((6, 2, 2, 3), np.uint8), np.array([0, 0, 0, 1, 1, 1], np.int32))
    >>> subset(split, 4, seed=0, classes=2).labels
    array([0, 0, 1, 1], dtype=int32)
    """
    if size is None:
        return split
    if not 1 <= size <= len(split.labels):
        raise DataError(
            f"expected a subset of 1 to {len(split.labels)} images, the split's size, got {size}"
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(split.labels))
    labels = split.labels[shuffled]
    turn = rng.permutation(classes)[labels]
    chosen = np.sort(shuffled[np.lexsort((turn, _rank(labels)))[:size]])
    return Split(split.images[chosen], split.labels[chosen])


def _rank(labels: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Return the number of earlier entries with the same label.

    >>> _rank(np.array([7, 5, 7, 7, 5]))
    array([0, 0, 1, 2, 1])
    """
    grouped = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[grouped], return_index=True, return_counts=True)
    rank = np.empty(len(labels), int)
    rank[grouped] = np.arange(len(labels)) - np.repeat(starts, counts)
    return rank
