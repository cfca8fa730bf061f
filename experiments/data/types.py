"""Data sets: uint8 images in memory, labels, class names, channel statistics."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

Notify = Callable[[str], object]
"""A function that is called with what people should know; `print` is one."""


class DataError(Exception):
    """A data set cannot be had; the message says why and what to do."""


class NotAtHandError(DataError):
    """The data is neither here nor can be downloaded; only then a stand-in may take its place."""


class Split(NamedTuple):
    """The images and labels of one split.

    Attributes:
      images: RGB, 0 to 255.
      labels: class numbers, 0 to C-1, indices into `Dataset.classes`.
    """

    images: UInt8[np.ndarray, "N H W 3"]
    labels: Int32[np.ndarray, " N"]


class Dataset(NamedTuple):
    """A data set in memory.

    Attributes:
      name: the data that was really loaded, whatever was asked for.
      classes: the names of the C classes.
      mean: of each channel over the training images scaled to [0, 1].
      std: of each channel likewise; 1 for a constant channel, so that dividing is safe.
      mirrored: whether training shifts and mirrors the images at random.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: Float32[np.ndarray, " 3"]
    std: Float32[np.ndarray, " 3"]
    mirrored: bool = True


def measured(
    name: str, train: Split, test: Split, classes: tuple[str, ...], *, mirrored: bool = True
) -> Dataset:
    """Return the data set with the channel statistics of its training images."""
    return Dataset(name, train, test, classes, *moments(train.images), mirrored)


def moments(
    images: UInt8[np.ndarray, "N H W 3"],
) -> tuple[Float32[np.ndarray, " 3"], Float32[np.ndarray, " 3"]]:
    """Return the mean and standard deviation of each channel, of pixels scaled to [0, 1].

    With s = Σ x and q = Σ x² over the n pixels of a channel, the variance is (n·q − s²)/n², all in
    integers: exact, and exactly zero for a constant channel.

    >>> black_and_white = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(3, axis=3)
    >>> moments(black_and_white)
    (array([0.5, 0.5, 0.5], dtype=float32), array([0.5, 0.5, 0.5], dtype=float32))
    """
    n = images[..., 0].size
    total = images.sum(axis=(0, 1, 2), dtype=np.int64)
    squares = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64, casting="safe")
    # Python's integers, because n·q exceeds 64 bits.
    variance = [n * q - s**2 for s, q in zip(total.tolist(), squares.tolist(), strict=True)]
    std = np.sqrt(np.array(variance, float)) / n / 255
    return (total / n / 255).astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
