"""Images on the device: random crops and flips of uint8, then standardisation."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped, UInt8


def crop_and_flip(
    key: Key[Array, ""], images: Shaped[Array | np.ndarray, "N H W C"], padding: int = 4
) -> Shaped[Array, "N H W C"]:
    """Shift every image at random and mirror it with probability 1/2.

    Each image is padded with `padding` zeros on its four sides, cut to its old size at an offset
    drawn uniformly from {0, …, 2·padding}², and mirrored left to right or not: the usual
    augmentation of CIFAR. The draws do not depend on how the batch is cut over devices.

    Args:
      key: a random key.
      images: the batch; uint8 is cheapest.
      padding: pixels of padding on each side, which is also the largest shift.

    Returns:
      The augmented batch, of the same shape and dtype.

    Raises:
      ValueError: the batch does not have four axes.

    >>> images = jnp.ones((2, 8, 8, 3), jnp.uint8)
    >>> crop_and_flip(jax.random.key(0), images).shape
    (2, 8, 8, 3)

    References:
      K. He et al., *Deep residual learning for image recognition*, CVPR 2016, section 4.2.
    """
    _check("crop_and_flip", images)
    shift_key, flip_key = jax.random.split(key)
    flips = jax.random.bernoulli(flip_key, shape=images.shape[:1])
    return _views(images, _shifts(shift_key, images, padding), flips, padding)


def crop(
    key: Key[Array, ""], images: Shaped[Array | np.ndarray, "N H W C"], padding: int = 4
) -> Shaped[Array, "N H W C"]:
    """Shift every image at random, as `crop_and_flip` does, and mirror none.

    Args:
      key: a random key.
      images: the batch; uint8 is cheapest.
      padding: pixels of padding on each side, which is also the largest shift.

    Returns:
      The augmented batch, of the same shape and dtype.

    Raises:
      ValueError: the batch does not have four axes.

    >>> crop(jax.random.key(0), jnp.ones((2, 8, 8, 3), jnp.uint8)).shape
    (2, 8, 8, 3)
    """
    _check("crop", images)
    flips = jnp.zeros(images.shape[:1], bool)
    return _views(images, _shifts(key, images, padding), flips, padding)


def _check(name: str, images: Shaped[Array | np.ndarray, "..."]) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"{name} expects images (N, H, W, C), got {images.dtype}{images.shape}; for other data "
            "give Recipe(augment=dcjax.training.no_augment)"
        )


def _shifts(key: Array, images: Array | np.ndarray, padding: int) -> Array:
    return jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)


def _views(images: Array | np.ndarray, shifts: Array, flips: Array, padding: int) -> Array:
    """Pad the images, and cut and mirror each in one gather."""
    _, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def view(image: Array, shift: Array, flip: Array) -> Array:
        rows, columns = jnp.arange(height), jnp.arange(width)
        columns = jnp.where(flip, columns[::-1], columns)
        return image[(rows + shift[0])[:, None], columns + shift[1]]

    return jax.vmap(view)(padded, shifts, flips)


def no_augment(key: Key[Array, ""], images: Shaped[Array, "N ..."]) -> Shaped[Array, "N ..."]:
    """Return the images unchanged, for data that must not be mirrored, such as digits.

    >>> int(no_augment(jax.random.key(0), jnp.ones((1, 2, 2, 1), jnp.uint8)).sum())
    4
    """
    del key
    return images


def standardise(
    mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.25
) -> Callable[[UInt8[Array, "*N C"]], Float[Array, "*N C"]]:
    """Make the function x ↦ (x/255 − mean)/std from uint8 to float32.

    Args:
      mean: of the pixels scaled to [0, 1]; one number, or one for each channel.
      std: their standard deviation, likewise.

    Returns:
      The function; it takes images of any leading shape.

    Raises:
      ValueError: a standard deviation is not positive; or, from the function, images are not uint8.

    >>> standardise(mean=0.5, std=0.5)(jnp.array([0, 255], jnp.uint8))
    Array([-1.,  1.], dtype=float32)
    """
    if not np.all(np.asarray(std) > 0):
        raise ValueError(f"expected standard deviations > 0, got std = {std}")
    scale = np.asarray(1 / (255 * np.asarray(std)), np.float32)
    offset = np.asarray(np.asarray(mean) / np.asarray(std), np.float32)

    def normalise(images: Shaped[Array, "*N C"]) -> Float[Array, "*N C"]:
        # Scaled images would be scaled again, and other integers reach beyond 255.
        if images.dtype != jnp.uint8:
            raise ValueError(
                "dcjax.training.standardise expects images of uint8, from 0 to 255, got "
                f"{images.dtype}{images.shape}; images.astype(numpy.uint8) makes them of integers "
                "in that range; for scaled images give Recipe(normalise=lambda x: x)"
            )
        return images.astype(jnp.float32) * scale - offset

    return normalise
