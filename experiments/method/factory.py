"""From settings to what the library works with: networks, samples, recipes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

import dcjax
from dcjax import training
from experiments.data import Dataset
from experiments.settings.schema import Network, Training

PyTree = Any


Convolution = Callable[..., Array]


def network(
    chosen: Network,
    classes: int,
    dtype: Any = jnp.float32,
    convolution: Convolution | None = None,
) -> nn.Module:
    """The global network, computing in the given precision, with JAX's convolutions or these."""
    how: dict[str, Any] = {"dtype": dtype, "conv_general_dilated": convolution}
    if chosen.model == "resnet":
        return dcjax.models.ResNet(chosen.depth, chosen.width, classes, **how)
    convolutions = (chosen.depth - 2) // 3  # in each of three stages; then two dense layers
    return dcjax.models.CNN(chosen.width, classes, convolutions=convolutions, **how)


def convolution(chosen: Network, say: Callable[[str], None]) -> Convolution | None:
    """The compiled convolution where it is wanted and can be had; None for JAX's own."""
    if not chosen.native or jax.default_backend() != "cpu":
        return None
    try:
        dcjax.native.build()
    except dcjax.native.NativeError as error:
        say(f"JAX's own convolutions, some times slower: {error}")
        return None
    return dcjax.native.conv_general_dilated


def precision(chosen: Network) -> str:
    """The dtype of training's arithmetic: on an accelerator bfloat16, unless told otherwise."""
    if chosen.precision != "auto":
        return chosen.precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


class Schedule(NamedTuple):
    """How the learning rate goes, in epochs: up in a line to the peak, down to the end."""

    epochs: int
    peak: float
    warmup: float
    final: float = 0.0


def recipe(
    chosen: Training, dataset: Dataset, schedule: Schedule, *then: optax.GradientTransformation
) -> training.Recipe:
    """How a phase is trained; what is to be done to the optimiser's updates comes `then`."""
    per_epoch = training.steps_per_epoch(len(dataset.train.labels), chosen.batch_size)
    steps = max(1, schedule.epochs * per_epoch)
    warmup = min(round(schedule.warmup * per_epoch), steps // 2)
    optimizer = training.sgd(
        schedule.peak, steps, warmup, chosen.weight_decay, final_rate=schedule.final
    )
    return training.Recipe(
        optimizer=optax.chain(optimizer, *then),
        batch_size=chosen.batch_size,
        # A mirrored digit is no digit, or another one.
        augment=training.no_augment if dataset.name == "digits" else training.crop_and_flip,
        normalise=normalise(dataset),
        loss=smoothed(chosen.label_smoothing),
        average=chosen.average,
    )


def evaluation(chosen: Training, dataset: Dataset) -> training.Recipe:
    """The recipe of a phase that only evaluates."""
    return recipe(chosen, dataset, Schedule(epochs=0, peak=1.0, warmup=0.0))


def smoothed(part: float) -> Callable[[Array, Array], Array]:
    """Cross entropy to labels of which that part is spread evenly over all classes.

    >>> float(smoothed(0.0)(jnp.zeros((1, 2)), jnp.array([1]))[0])
    0.6931471824645996
    """
    plain = optax.losses.softmax_cross_entropy_with_integer_labels
    if not part:
        return plain

    def loss(logits: Array, labels: Array) -> Array:
        to_all = -jax.nn.log_softmax(logits).mean(axis=-1)
        return (1 - part) * plain(logits, labels) + part * to_all

    return loss


def normalise(dataset: Dataset) -> Callable[[UInt8[Array, "N H W 3"]], Float[Array, "N H W 3"]]:
    """The function from uint8 images to what networks see: each colour of mean 0 and variance 1."""
    return training.standardise(dataset.mean.tolist(), dataset.std.tolist())


def parameters(variables: PyTree) -> int:
    """The number of trained parameters.

    >>> parameters({"params": {"kernel": jnp.ones((3, 4))}, "batch_stats": {"mean": jnp.ones(4)}})
    12
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
