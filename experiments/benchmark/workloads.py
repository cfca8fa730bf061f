"""Training steps of residual networks, as the experiments train them, and PyTorch's."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import dcjax
from dcjax import training
from experiments.benchmark.timing import Ways, in_turns
from experiments.method import factory
from experiments.settings.flags import Network

BATCH = 128
RECIPE = training.Recipe(training.sgd(0.1, 1000), batch_size=BATCH, augment=training.no_augment)
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


def resnet(depth: int, width: int) -> nn.Module:
    """Return the network as the experiments train it."""
    settings = Network(model="resnet", depth=depth, width=width)
    return factory.network(settings, 10, factory.precision(settings), convolution())


def side_by_side(network: Any, subnets: int) -> Made:
    """Return the trainer of all sub-networks, and their variables."""
    stacked = dcjax.init(network, subnets, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    subnet = dcjax.decompose(network, subnets)
    samples = dcjax.samples.replicate(subnets)
    return training.side_by_side(subnet, samples, RECIPE, subnets), stacked


def data_parallel(network: Any, devices: Any) -> Made:
    """Return the trainer of one network, and its variables."""
    trainer = training.data_parallel(network, dcjax.samples.replicate(1), RECIPE, devices=devices)
    variables = dcjax.init(network, 1, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[0]
    return trainer, variables


def step_times(made: Mapping[str, Made], others: Ways, runs: int) -> dict[str, Any]:
    """Time a step of the trainers and of the others, all in turns, in seconds."""
    # An accelerator's trainers run an epoch a call, here of enough steps to make the call's
    # overhead as small as it is in training. The others are measured on the CPU only.
    steps = 1 if jax.default_backend() == "cpu" else 32
    ways = {name: _runner(*one, steps) for name, one in made.items()} | dict(others)
    return {
        name: {key: seconds / steps for key, seconds in timing._asdict().items()}
        for name, timing in in_turns(ways, runs).items()
    }


def _runner(trainer: training.Trainer, variables: Any, steps: int) -> Callable[[], Any]:
    """Return a function that trains on: a step, or an epoch where the trainer compiles epochs."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps * BATCH, 32, 32, 3)).astype(np.uint8)
    data = trainer.place(images, rng.integers(0, 10, len(images)))
    state = trainer.start(variables, jax.random.key(1))
    trainer, _ = training.compile(trainer, state, data)
    order = trainer.shuffle(state, data)
    call = trainer.step if trainer.epoch is None else trainer.epoch

    def step() -> None:
        nonlocal state
        state, loss = call(state, data, order)
        jax.block_until_ready((state, loss))

    return step
