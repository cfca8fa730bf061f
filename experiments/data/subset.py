"""Seeded, class-balanced choices among the images of a split."""

import numpy as np
from jaxtyping import Int

from experiments.data.types import Places, Pool

HELD_OUT = 5
"""Of so many images of a class, one is held out for the test."""


def subset(labels: Int[np.ndarray, " N"], size: int | None, seed: int, classes: int) -> Places:
    """Return the places of a class-balanced random part of a split, in its order.

    The classes are shuffled, and the images of each class; then each class in turn gives one image
    until there are `size`. So the classes' counts differ by at most one, unless a class runs out of
    images. With one seed, smaller subsets are parts of larger ones.

    Args:
      labels: of the N images.
      size: the number of images; None, or more than N, for all.
      seed: of the random choice.
      classes: the number of classes C.

    >>> subset(np.array([0, 0, 0, 1, 1, 1]), 4, seed=0, classes=2)
    array([0, 2, 3, 5])
    """
    rng = np.random.default_rng(seed)
    shuffled, rank = _ranked(labels, rng, classes)
    turn = rng.permutation(classes)[labels[shuffled]]
    return np.sort(shuffled[np.lexsort((turn, rank))[:size]])


def held_out(pool: Pool, classes: int) -> tuple[Pool, Pool]:
    """Split images into training and test: of each class a fifth, drawn with seed 0, is the test.

    A class of two images or more has one in each; a single image is for training.
    """
    shuffled, rank = _ranked(pool.labels, np.random.default_rng(0), classes)
    counts = np.bincount(pool.labels, minlength=classes)
    tests = np.where(counts > 1, np.maximum(1, counts // HELD_OUT), 0)
    in_test = rank < tests[pool.labels[shuffled]]
    train, test = np.sort(shuffled[~in_test]), np.sort(shuffled[in_test])
    return _part(pool, train), _part(pool, test)


def _ranked(
    labels: Int[np.ndarray, " N"], rng: np.random.Generator, classes: int
) -> tuple[Places, Int[np.ndarray, " N"]]:
    """Return shuffled places, and how many of the same class come before each."""
    shuffled = rng.permutation(len(labels))
    labels = labels[shuffled]
    rank = np.empty(len(labels), int)
    for c in range(classes):
        rank[labels == c] = np.arange(np.count_nonzero(labels == c))
    return shuffled, rank


def _part(pool: Pool, places: Places) -> Pool:
    return pool._replace(
        labels=pool.labels[places],
        size=lambda chosen: pool.size(places[chosen]),
        read=lambda chosen, side: pool.read(places[chosen], side),
        identity=None if pool.identity is None else f"{pool.identity} {places.tolist()}",
    )
