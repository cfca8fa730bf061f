"""From settings to what the library works with: networks, samples, recipes."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

import dcjax
from dcjax import method, training
from experiments.data import Dataset
from experiments.run.checkpointing import Keeper
from experiments.settings import own
from experiments.settings.flags import Network, Settings, Training

Convolution = Callable[..., Array]


class Setup(NamedTuple):
    """The values that the stages of one run share.

    Attributes:
      road: those that the method itself works with.
    """

    settings: Settings
    dataset: Dataset
    keeper: Keeper
    road: method.Road


def setup(settings: Settings, dataset: Dataset, keeper: Keeper) -> Setup:
    """Make what the stages share."""
    chosen, classes = settings.network, len(dataset.classes)
    conv = convolution(chosen, keeper.say)
    samples = dcjax.samples.make(chosen.samples, settings.subnets)
    exact = network(chosen, classes, convolution=conv)
    road = method.Road(
        network=network(chosen, classes, precision(chosen), conv),
        exact=exact,
        subnets=settings.subnets,
        samples=samples,
        train=method.Split(*dataset.train),
        test=method.Split(*dataset.test),
        recipe=recipe(settings.training, dataset, Schedule()),
        key=jax.random.key(settings.seed),
        journal=keeper,
    )
    return Setup(settings, dataset, keeper, road)


def check_own(settings: Settings, dataset: Dataset) -> None:
    """Raise an `OwnError` if a network or optimiser of one's own cannot be used."""
    chosen = settings.network
    if chosen.model not in own.BUILT_IN:
        samples = dcjax.samples.make(chosen.samples, settings.subnets)
        few = jnp.zeros((2, *dataset.train.images.shape[1:]))
        made = network(chosen, len(dataset.classes))
        own.check(chosen.model, made, settings.subnets, samples, few)
    recipe(settings.training, dataset, Schedule())


def network(
    chosen: Network, classes: int, dtype: Any = jnp.float32, convolution: Convolution | None = None
) -> nn.Module:
    """Return the global network, computing in `dtype`, with JAX's convolutions or the given one."""
    options: dict[str, Any] = {"dtype": dtype, "conv_general_dilated": convolution}
    if chosen.model not in own.BUILT_IN:
        sizes = {"width": chosen.width, "depth": chosen.depth}
        return own.network(chosen.model, classes, **sizes, **options)
    if chosen.model == "resnet":
        return dcjax.models.ResNet(chosen.depth, chosen.width, classes, **options)
    convolutions = (chosen.depth - 2) // 3  # in each of three stages; then two dense layers
    return dcjax.models.CNN(chosen.width, classes, convolutions=convolutions, **options)


def convolution(chosen: Network, say: Callable[[str], None]) -> Convolution | None:
    """Return the compiled convolution if it is wanted and can be built; None for JAX's."""
    if not chosen.native or jax.default_backend() != "cpu":
        return None
    try:
        with warnings.catch_warnings(record=True, action="always") as warned:
            dcjax.native.build()
    except dcjax.native.NativeError as error:
        say(f"using JAX's convolutions, which are several times slower: {error}")
        return None
    for warning in warned:  # a cache that cannot be written
        say(str(warning.message))
    return dcjax.native.conv_general_dilated


def precision(chosen: Network) -> str:
    """Return the dtype of training's arithmetic; `auto` is bfloat16 on an accelerator."""
    if chosen.precision != "auto":
        return chosen.precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


class Schedule(NamedTuple):
    """A learning rate over epochs: linear warm-up to the peak, cosine decay to the final one."""

    epochs: int = 0
    peak: float = 1.0
    warmup: float = 0.0
    final: float = 0.0


def recipe(
    chosen: Training, dataset: Dataset, schedule: Schedule, *then: optax.GradientTransformation
) -> training.Recipe:
    """Return how a stage is trained; `then` is applied to the optimiser's updates.

    A network that is only evaluated takes the empty `Schedule()`.
    """
    per_epoch = training.steps_per_epoch(len(dataset.train.labels), chosen.batch_size)
    steps = max(1, schedule.epochs * per_epoch)
    warmup = min(round(schedule.warmup * per_epoch), steps // 2)
    if chosen.optimizer == "sgd":
        optimizer = training.sgd(
            schedule.peak, steps, warmup, chosen.weight_decay, final_rate=schedule.final
        )
    else:
        start = 0.0 if warmup else schedule.peak
        rate = optax.schedules.warmup_cosine_decay_schedule(
            start, schedule.peak, warmup, steps, schedule.final
        )
        optimizer = own.optimizer(chosen.optimizer, rate, chosen.weight_decay)
    return training.Recipe(
        optimizer=optax.chain(optimizer, *then),
        batch_size=chosen.batch_size,
        augment=augmentation(dataset)[0],
        normalise=normalise(dataset),
        loss=smoothed(chosen.label_smoothing),
        average=chosen.average,
    )


def outer(chosen: Training) -> optax.GradientTransformation | None:
    """Return the optimiser of the steps after averages; None takes the averages themselves."""
    if chosen.outer_rate is None:
        return None
    return optax.sgd(chosen.outer_rate, momentum=0.9, nesterov=True)


def smoothed(part: float) -> Callable[[Array, Array], Array]:
    """Return the cross entropy to labels of which `part` is spread evenly over all classes.

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


def augmentation(dataset: Dataset) -> tuple[Callable[[Array, Array], Array], str]:
    """Return how training varies a batch of images, and the same in words."""
    shift = max(4, min(dataset.train.images.shape[1:3]) // 8)  # 4 of 32, as is usual
    moved = f"shifted at random by up to {shift} pixels"
    if dataset.augment == "mirror":
        return functools.partial(training.crop_and_flip, padding=shift), f"{moved} and mirrored"
    if dataset.augment == "shift":
        return functools.partial(training.crop, padding=shift), f"{moved} and not mirrored"
    return training.no_augment, "neither shifted nor mirrored"


def treatment(dataset: Dataset) -> str:
    """Say what is done with an image before a network sees it."""
    count, height, width, _ = dataset.train.images.shape
    return (
        f"{count} training and {len(dataset.test.labels)} test images of {height}×{width}; each "
        "colour is normalised to mean 0 and variance 1; in training, images are "
        f"{augmentation(dataset)[1]}"
    )


def normalise(dataset: Dataset) -> Callable[[UInt8[Array, "N H W 3"]], Float[Array, "N H W 3"]]:
    """Return the map from uint8 images to network inputs: each colour of mean 0 and variance 1."""
    return training.standardise(dataset.mean.tolist(), dataset.std.tolist())
