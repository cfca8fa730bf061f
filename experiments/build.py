"""From settings to what the library works with: networks, samples, recipes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

import dcjax
from dcjax import training
from experiments.config import Network, Training
from experiments.data import Dataset

PyTree = Any


def network(chosen: Network, classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """The global network, computing in the given precision."""
    if chosen.model == "resnet":
        return dcjax.models.ResNet(chosen.depth, chosen.width, classes, dtype=dtype)
    convolutions = (chosen.depth - 2) // 3  # in each of three stages; then two dense layers
    return dcjax.models.CNN(chosen.width, classes, convolutions=convolutions, dtype=dtype)


def precision(chosen: Network) -> str:
    """The dtype of training's arithmetic: on an accelerator bfloat16, unless told otherwise."""
    if chosen.precision != "auto":
        return chosen.precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def recipe(chosen: Training, dataset: Dataset, rate: float, epochs: int) -> training.Recipe:
    """How a phase of so many epochs is trained, at this peak learning rate."""
    per_epoch = training.steps_per_epoch(len(dataset.train.labels), chosen.batch_size)
    steps = max(1, epochs * per_epoch)
    warmup = min(round(chosen.warmup_epochs * per_epoch), steps // 2)
    return training.Recipe(
        optimizer=training.sgd(rate, steps, warmup, chosen.weight_decay),
        batch_size=chosen.batch_size,
        # A mirrored digit is no digit, or another one.
        augment=training.no_augment if dataset.name == "digits" else training.crop_and_flip,
        normalise=normalise(dataset),
    )


def normalise(dataset: Dataset) -> Callable[[UInt8[Array, "N H W 3"]], Float[Array, "N H W 3"]]:
    """The function from uint8 images to what networks see: each colour of mean 0 and variance 1."""
    return training.standardise(dataset.mean.tolist(), dataset.std.tolist())


def parameters(variables: PyTree) -> int:
    """The number of trained parameters.

    >>> parameters({"params": {"kernel": jnp.ones((3, 4))}, "batch_stats": {"mean": jnp.ones(4)}})
    12
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
