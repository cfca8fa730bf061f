"""Whole splits in device memory, and their batches in order."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, Shaped

from dcjax.training._devices import Device, sharding
from dcjax.training._processes import put


class Data(NamedTuple):
    """A split of a data set, or a batch of it, on the devices of a trainer.

    * `images` (N, H, W, C) and `labels` (N,).
    * `members`: the numbers of the sub-networks that see it, on the devices that hold their states;
      None for a single network.
    """

    images: Shaped[Array, "N H W C"]
    labels: Int[Array, "N"]
    members: Int[Array, "devices members"] | None = None


def place(devices: Sequence[Device], members: Array | None, images: Any, labels: Any) -> Data:
    """Put a split into the memory of every device."""
    images, labels = np.asarray(images), np.asarray(labels)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"expected integer labels, one for each image: images {images.dtype}{images.shape} "
            f"need labels of shape {images.shape[:1]}, got {labels.dtype}{labels.shape}; the order "
            "is place(images, labels), and labels.argmax(-1) makes integers of one-hot labels"
        )
    if not labels.size:
        raise ValueError(f"expected at least one image, got images {images.dtype}{images.shape}")
    if _channels_first(images):
        raise ValueError(
            f"expected images (N, H, W, C), got {images.shape}, whose channels come first: "
            "images.transpose(0, 2, 3, 1) puts them last"
        )
    for label in (labels.min(), labels.max()):
        if not 0 <= label < 2**31:
            raise ValueError(f"expected class numbers from 0 on as labels, got {label}")
    split = images, labels.astype(np.int32)
    images, labels = put(split, sharding(devices), "images and labels")
    return Data(images, labels, members)


def _channels_first(images: np.ndarray) -> bool:
    """Tell square pictures of 1 or 3 channels first from images of 1 or 3 rows."""
    if images.dtype != np.uint8 or images.ndim != 4:
        return False
    channels, height, width = images.shape[1:]
    return channels in (1, 3) and height == width > 4


def batcher(batch_size: int, form: NamedSharding) -> Callable[[Data, int], Data]:
    """Make the function that takes the batches of a split in order.

    The last example fills the last batch up, so that one compiled program serves all.
    """

    @jax.jit(out_shardings=form)
    def take(images: Array, labels: Array, index: Array) -> tuple[Array, Array]:
        places = index * batch_size + jnp.arange(batch_size)
        places = jnp.minimum(places, len(labels) - 1)
        return images[places], labels[places]

    def batch(data: Data, index: int) -> Data:
        images, labels = take(data.images, data.labels, np.int32(index))
        return Data(images, labels, data.members)

    return batch
