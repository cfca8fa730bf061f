"""Training steps: K sub-networks side by side, one alone, the global network; and PyTorch's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dcjax
from dcjax import training
from experiments.benchmark.timing import Timing, in_turns

BATCH = 128
Ways = dict[str, Callable[[], Any]]


def step_row(depth: int, width: int, subnets: int, runs: int) -> dict[str, Any]:
    """The steps of ResNet sub-networks of a width, batch 128 of 32×32×3, float32, no augmentation.

    `single` is a sub-network's step by plain `jit` on one device, which uses all cores; `global`
    the data-parallel step of the network that is K times as wide.
    """
    network = dcjax.models.ResNet(depth, width * subnets, 10)
    subnet = dcjax.decompose(network, subnets)
    one = jax.devices()[:1]
    ways: Ways = {
        "side_by_side": runner(side_by_side(network, subnets)),
        "single": runner(data_parallel(subnet, one)),
        "global": runner(data_parallel(network)),
    }
    ways |= _torch_ways(depth, width, subnets)
    found = in_turns(ways, runs)
    return {name: timing._asdict() for name, timing in found.items()}


def _torch_ways(depth: int, width: int, subnets: int) -> Ways:
    try:
        from experiments.benchmark import torch_steps
    except ImportError:
        return {}
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 10, BATCH)
    return {
        "torch_loop": torch_steps.loop_step(depth, width, subnets, images, labels),
        "torch_vmap": torch_steps.vmap_step(depth, width, subnets, images, labels),
        "torch_global": torch_steps.loop_step(depth, width * subnets, 1, images, labels),
    }


def recipe(augment: Any = training.no_augment) -> training.Recipe:
    """The study's own, without augmentation unless asked for."""
    return training.Recipe(training.sgd(0.1, 1000), batch_size=BATCH, augment=augment)


def side_by_side(
    network: Any, subnets: int, how: training.Recipe | None = None
) -> tuple[training.Phase, Any]:
    """The phase of all sub-networks, and its variables."""
    stacked = dcjax.init(network, subnets, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    subnet = dcjax.decompose(network, subnets)
    samples = dcjax.samples.replicate(subnets)
    return training.side_by_side(subnet, samples, how or recipe(), subnets), stacked


def data_parallel(network: Any, devices: Any = None) -> tuple[training.Phase, Any]:
    """The phase of one network, and its variables."""
    phase = training.data_parallel(network, dcjax.samples.replicate(1), recipe(), devices=devices)
    variables = dcjax.init(network, 1, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[0]
    return phase, variables


def compiled(
    phase: training.Phase, variables: Any
) -> tuple[training.Phase, training.TrainState, training.Data, float]:
    """The phase compiled for random images, its state, the images, the seconds of compilation."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4 * BATCH, 32, 32, 3)).astype(np.uint8)
    data = phase.place(images, rng.integers(0, 10, len(images)))
    state = phase.start(variables, jax.random.key(1))
    phase, seconds = training.compile(phase, state, data)
    return phase, state, data, seconds


def runner(made: tuple[training.Phase, Any]) -> Callable[[], Any]:
    """One step after another of a phase."""
    phase, state, data, _ = compiled(*made)
    order = phase.shuffle(state, data)
    box = [state]

    def step() -> None:
        box[0], loss = phase.step(box[0], data, order)
        jax.block_until_ready((box[0], loss))

    return step


def step_ratios(row: dict[str, Any], subnets: int) -> dict[str, float]:
    """The issue's ratios: against K single steps, the faster PyTorch form, and the ideal 1/K."""
    median = {name: Timing(**timing).median for name, timing in row.items()}
    side = median["side_by_side"]
    ratios = {
        "single": side / (subnets * median["single"]),
        "ideal": side / (median["global"] / subnets),
    }
    if "torch_loop" in median:
        ratios["torch"] = side / min(median["torch_loop"], median["torch_vmap"])
        ratios["torch_global"] = median["global"] / median["torch_global"]
    return ratios
