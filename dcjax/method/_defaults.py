"""Settings that suit the size of the data, and the keyword arguments of a network's call."""

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import optax
from jaxtyping import Array

from dcjax import training

STEPS = 600  # of the sub-networks' training, where four epochs are not more
IN_TRAINING = {"train": True, "training": True, "is_training": True, "deterministic": False}
"""Arguments that tell a network whether it is trained, with their values in training."""


class Sizes(NamedTuple):
    """Images a step, and epochs of the sub-networks and of fine-tuning."""

    batch_size: int
    epochs: tuple[int, int]


def sizes(
    examples: int, batch_size: int | None = None, epochs: tuple[int, int] | None = None
) -> Sizes:
    """Choose what is not given: batches of 8 to 128 images, about 600 steps, four epochs or more.

    >>> sizes(10_000), sizes(200)
    (Sizes(batch_size=128, epochs=(8, 2)), Sizes(batch_size=8, epochs=(24, 6)))
    """
    if batch_size is None:
        power = 2 ** round(math.log2(max(examples, 1) / 80))
        batch_size = int(min(max(power, 8), 128, max(examples, 1)))
    if epochs is None:
        first = min(max(math.ceil(STEPS / max(examples // max(batch_size, 1), 1)), 4), 100)
        epochs = first, max(1, round(first / 4))
    if operator.index(batch_size) < 1:
        raise ValueError(f"expected a batch_size of 1 or more, got {batch_size}")
    try:
        first, last = map(operator.index, epochs)
    except (TypeError, ValueError):
        first = last = -1
    if first < 1 or last < 0:
        raise ValueError(
            "expected epochs=(of the sub-networks, of fine-tuning), integers from 1 and from 0 on, "
            f"got {epochs}"
        )
    return Sizes(batch_size, (first, last))


def call_kwargs(network: nn.Module, *, train: bool) -> dict[str, Any]:
    """Return the arguments that tell the network's call whether it is trained, if it has one.

    >>> import dcjax
    >>> call_kwargs(dcjax.models.CNN(width=8, num_classes=10), train=False)
    {'train': False}
    """
    named = inspect.signature(type(network).__call__).parameters
    return {name: on == train for name, on in IN_TRAINING.items() if name in named}


def adamw(rate: float, constant: int, decaying: int, warmup: int) -> optax.GradientTransformation:
    """Return AdamW: warm-up, a constant rate to the end of the first stage, then cosine decay."""
    if not isinstance(rate, (int, float, np.number)) or not 0 < rate < math.inf:
        raise ValueError(f"expected a learning_rate above 0 and finite, got {rate!r}")
    warmup = min(warmup, (constant + decaying) // 10)
    parts = [
        optax.linear_schedule(0.0, rate, warmup),
        optax.constant_schedule(rate),
        optax.cosine_decay_schedule(rate, max(1, constant + decaying - max(warmup, constant))),
    ]
    return optax.adamw(
        optax.join_schedules(parts, [warmup, max(warmup, constant)]), weight_decay=1e-2
    )


class Moments(NamedTuple):
    """The mean and standard deviation of each channel; of uint8 images scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def moments(images: np.ndarray) -> Moments:
    """Measure each channel, the last axis; a constant channel has the standard deviation 1.

    >>> moments(np.array([[0, 255], [255, 255]], np.uint8))
    Moments(mean=(0.5, 1.0), std=(0.5, 1.0))
    """
    axes, unit = tuple(range(images.ndim - 1)), 255 if images.dtype == np.uint8 else 1
    mean = images.mean(axes, dtype=np.float64)
    # Not all images at once: as float64 they take eight times the memory.
    parts = (images[i : i + 1000] for i in range(0, len(images), 1000))
    squares = sum(np.square(part - mean).sum(axes) for part in parts)
    std = np.sqrt(squares / (images.size // images.shape[-1])) / unit
    if not np.isfinite(std).all():
        raise ValueError("the training images hold NaN or infinite numbers")
    return Moments(tuple((mean / unit).tolist()), tuple(np.where(std > 0, std, 1).tolist()))


def normaliser(moments: Moments | None, dtype: Any) -> Callable[[Array], Array]:
    """Return the map from images of this dtype to inputs of mean 0 and variance 1; None: as is."""
    if moments is None:
        return lambda x: x
    if dtype == np.uint8:
        return training.standardise(*moments)
    mean, std = (np.asarray(each, np.float32) for each in moments)
    return lambda x: (x - mean) / std
