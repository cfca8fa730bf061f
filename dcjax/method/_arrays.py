"""The arrays that `transfer` takes, checked before anything is trained."""

from typing import Any

import jax
import numpy as np

from dcjax._compose.head_weights import check_head
from dcjax._compose.stacked import Stacked
from dcjax.method._road import Road
from dcjax.method._stage import Split


def continuous(images: np.ndarray) -> bool:
    """Return whether images are uint8 or floats, which are normalised; not tokens."""
    return images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)


def split_of(name: str, pair: Any) -> Split:
    """Return a pair of images and labels as NumPy arrays."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name} must be a pair (images, labels), got {type(pair).__name__}")
    images, labels = (np.asarray(each) for each in pair)
    if images.dtype == np.float64:
        images = images.astype(np.float32)
    if np.issubdtype(images.dtype, np.integer) and images.dtype != np.uint8 and images.ndim > 2:
        raise TypeError(
            f"{name} images are {images.dtype}{images.shape}: give images.astype(np.uint8) for "
            "pixels from 0 to 255, or floats"
        )
    if not images.size:
        raise ValueError(f"{name} must hold images, got {images.dtype}{images.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"{name} labels must be integers from 0 on, got {labels.dtype}{labels.shape}; "
            "numpy.unique(labels, return_inverse=True) gives the classes and such integers"
        )
    return Split(images, labels)


def check_alike(train: Split, test: Split) -> None:
    """Refuse splits of different images: the test split is first used after the training."""
    kinds = [f"{each.images.dtype}{('N', *each.images.shape[1:])}" for each in (train, test)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"train and test images must be alike, got {kinds[0]} and {kinds[1]}".replace("'", "")
        )


def check_labels(road: Road, start: Stacked) -> None:
    """Refuse a network that does not give logits of all classes of both splits."""
    check_head(start.layout)
    view = road.samples.split(road.images(1))[0]
    narrow = road.narrow(road.network)
    logits = jax.eval_shape(lambda x: narrow.apply(start[0], x, **road.call), view)
    if getattr(logits, "ndim", 0) != 2:
        raise ValueError(f"expected a network that gives logits (N, classes), got {logits}")
    for name, split in (("train", road.train), ("test", road.test)):
        if split.labels.size and split.labels.max() >= logits.shape[1]:
            raise ValueError(
                f"the network has {logits.shape[1]} classes, so labels go from 0 to "
                f"{logits.shape[1] - 1}, got {split.labels.max()} in {name}"
            )
