"""Seeded, class-balanced parts of a split."""

import numpy as np

from experiments.data.types import Split


def subset(split: Split, size: int | None, seed: int, classes: int) -> Split:
    """Return a class-balanced random part of a split, in the split's order.

    The classes are shuffled, and the images of each class; then each class in turn gives one image
    until there are `size`. So the classes' counts differ by at most one, unless a class runs out of
    images. With one seed, smaller subsets are parts of larger ones.

    Args:
      split: N images and their labels.
      size: the number of images; None, or more than N, for all.
      seed: of the random choice.
      classes: the number of classes C.

    >>> split = Split(np.zeros((6, 2, 2, 3), np.uint8), np.array([0, 0, 0, 1, 1, 1], np.int32))
    >>> subset(split, 4, seed=0, classes=2).labels
    array([0, 0, 1, 1], dtype=int32)
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(split.labels))
    labels = split.labels[shuffled]
    rank = np.empty(len(labels), int)  # the number of earlier images of the same class
    for c in range(classes):
        rank[labels == c] = np.arange(np.count_nonzero(labels == c))
    turn = rng.permutation(classes)[labels]
    chosen = np.sort(shuffled[np.lexsort((turn, rank))[:size]])
    return Split(split.images[chosen], split.labels[chosen])
