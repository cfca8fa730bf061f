"""Data sets: where images come from, and uint8 images in memory with labels and class names."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

Notify = Callable[[str], object]
"""A function that is called with what people should know; `print` is one."""
Places = Int[np.ndarray, " n"]
"""Numbers of images within a split, increasing."""
Images = UInt8[np.ndarray, "n H W 3"]
Moments = tuple[Float32[np.ndarray, " 3"], Float32[np.ndarray, " 3"]]
Augment = Literal["mirror", "shift", "none"]
"""How training varies images: shifted and mirrored at random, shifted only, or as they are."""


class DataError(Exception):
    """A data set cannot be had; the message says why and what to do."""


class NotAtHandError(DataError):
    """The data is neither here nor can be downloaded; only then a stand-in may take its place."""


class Pool(NamedTuple):
    """The labelled images of a split, read when they are wanted.

    Attributes:
      labels: class numbers, 0 to C-1, indices into `Source.classes`.
      size: returns the height and width of the images at some places; None if they differ or are
        not known.
      read: returns the images at some places as RGB. With a side, each is resized and its middle
        cut out to a square; with None they must have one size.
      identity: changes whenever an image may; None for images that are quick to read.
    """

    labels: Int32[np.ndarray, " N"]
    size: Callable[[Places], tuple[int, int] | None]
    read: Callable[[Places, int | None], Images]
    identity: str | None = None


class Source(NamedTuple):
    """A data set of which nothing but the labels is read.

    Attributes:
      name: the data that is really here, whatever was asked for.
      classes: the names of the C classes.
      augment: how training should vary its images.
      whole: normalise by all training images, whichever part is used; otherwise by that part.
    """

    name: str
    train: Pool
    test: Pool
    classes: tuple[str, ...]
    augment: Augment = "mirror"
    whole: bool = False


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
      augment: how training varies the images.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: Float32[np.ndarray, " 3"]
    std: Float32[np.ndarray, " 3"]
    augment: Augment = "mirror"


def moments(images: UInt8[np.ndarray, "N H W 3"]) -> Moments:
    """Return the mean and standard deviation of each channel, of pixels scaled to [0, 1].

    With s = Σ x and q = Σ x² over the n pixels of a channel, the variance is (n·q − s²)/n², all in
    integers: exact, and exactly zero for a constant channel. Its standard deviation is given as 1.

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
