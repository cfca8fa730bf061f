"""Training steps of residual networks, as the experiments train them, and PyTorch's."""

import functools
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dcjax
from dcjax import training
from experiments.benchmark.timing import Ways, in_turns
from experiments.method import factory
from experiments.settings.flags import Network

BATCH = 128
Made = tuple[training.Trainer, Any]
"""A trainer, and the variables from which it starts."""


@functools.cache
def convolution() -> Any:
    """Return the convolution of the experiments on this machine; None for JAX's."""
    return factory.convolution(Network(), functools.partial(print, file=sys.stderr))


def torch_steps() -> Any:
    """Return the module of PyTorch's steps; None unless PyTorch is installed and on the CPU."""
    if jax.default_backend() != "cpu":
        return None
    try:
        from experiments.benchmark import torch_steps
    except ImportError:
        return None
    return torch_steps


def resnet(depth: int, width: int, **options: Any) -> dcjax.models.ResNet:
    """Return the network as the experiments train it."""
    return dcjax.models.ResNet(depth, width, 10, conv_general_dilated=convolution(), **options)


def recipe(augment: Any = training.no_augment) -> training.Recipe:
    """Return the study's recipe, without augmentation by default."""
    return training.Recipe(training.sgd(0.1, 1000), batch_size=BATCH, augment=augment)


def side_by_side(
    network: Any, subnets: int, how: training.Recipe | None = None, **options: Any
) -> Made:
    """Return the trainer of all sub-networks, and their variables."""
    stacked = dcjax.init(network, subnets, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    subnet = dcjax.decompose(network, subnets)
    samples = dcjax.samples.replicate(subnets)
    return training.side_by_side(subnet, samples, how or recipe(), subnets, **options), stacked


def data_parallel(network: Any, devices: Any = None) -> Made:
    """Return the trainer of one network, and its variables."""
    trainer = training.data_parallel(network, dcjax.samples.replicate(1), recipe(), devices=devices)
    variables = dcjax.init(network, 1, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[0]
    return trainer, variables


def compiled(
    trainer: training.Trainer, variables: Any
) -> tuple[training.Trainer, training.TrainState, training.Data, float]:
    """Return the compiled trainer, its state, random images, and the seconds of compilation."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_epoch_steps() * BATCH, 32, 32, 3)).astype(np.uint8)
    data = trainer.place(images, rng.integers(0, 10, len(images)))
    state = trainer.start(variables, jax.random.key(1))
    trainer, seconds = training.compile(trainer, state, data)
    return trainer, state, data, seconds


def step_times(
    made: Mapping[str, Made], runs: int, others: Ways = MappingProxyType({})
) -> dict[str, Any]:
    """Time a step of the trainers and a call of the others, all in turns, in seconds."""
    # Side by side: on an accelerator compiling takes most of a row's time.
    with ThreadPoolExecutor() as pool:
        ready = dict(zip(made, pool.map(lambda one: compiled(*one), made.values()), strict=True))
    ways = {name: _runner(*one[:3]) for name, one in ready.items()} | dict(others)
    steps = {n: _epoch_steps() for n, one in ready.items() if one[0].epoch is not None}
    return {
        name: {key: seconds / steps.get(name, 1) for key, seconds in timing._asdict().items()}
        for name, timing in in_turns(ways, runs).items()
    }


def _epoch_steps() -> int:
    # On an accelerator enough to make a call's overhead as small as it is in training.
    return 4 if jax.default_backend() == "cpu" else 32


def _runner(
    trainer: training.Trainer, state: training.TrainState, data: training.Data
) -> Callable[[], Any]:
    """Return a function that trains on: a step, or an epoch where the trainer compiles epochs."""
    order = trainer.shuffle(state, data)
    call = trainer.step if trainer.epoch is None else trainer.epoch
    box = [state]

    def step() -> None:
        box[0], loss = call(box[0], data, order)
        jax.block_until_ready((box[0], loss))

    return step
