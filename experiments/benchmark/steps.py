"""Training steps: K sub-networks side by side, one alone, the global network; and PyTorch's."""

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
from experiments.benchmark.timing import Timing, Ways, in_turns
from experiments.method import factory
from experiments.settings.schema import Network

BATCH = 128
Made = tuple[training.Phase, Any]  # a phase, and its variables


def step_row(
    depth: int, width: int, subnets: int, runs: int, dtype: str = "float32"
) -> dict[str, Any]:
    """The steps of ResNet sub-networks of a width, batch 128 of 32×32×3, no augmentation.

    `single` is a sub-network's step by plain `jit` on one device, which uses all cores; `global`
    the data-parallel step of the network that is K times as wide, on as many devices.
    """
    network = resnet(depth, width * subnets, dtype=dtype)
    subnet = dcjax.decompose(network, subnets)
    one = jax.devices()[:1]
    made = {
        "side_by_side": side_by_side(network, subnets),
        "single": data_parallel(subnet, one),
        "global": data_parallel(network, jax.devices()[:subnets]),
    }
    others = torch_ways(depth, width, subnets)
    others.pop("torch_compiled", None)  # minutes to compile, for what the profile shows of one
    return step_times(made, runs, others)


@functools.cache
def convolution() -> Any:
    """What the experiments' convolutions are computed with here; None for JAX's own."""
    return factory.convolution(Network(), functools.partial(print, file=sys.stderr))


def resnet(depth: int, width: int, **options: Any) -> dcjax.models.ResNet:
    """The network, as the experiments train it."""
    return dcjax.models.ResNet(depth, width, 10, conv_general_dilated=convolution(), **options)


def step_times(
    made: Mapping[str, Made], runs: int, others: Ways = MappingProxyType({})
) -> dict[str, Any]:
    """Seconds a step of the phases, and a call of the others, all in turns."""
    # Compilers work beside each other: on an accelerator that is most of a row's time.
    with ThreadPoolExecutor() as pool:
        ready = dict(zip(made, pool.map(lambda one: compiled(*one), made.values()), strict=True))
    ways = {name: runner(*one[:3]) for name, one in ready.items()} | dict(others)
    found = in_turns(ways, runs)
    a_call = {n: _epoch_steps() for n, one in ready.items() if one[0].epoch is not None}
    return {
        name: {key: seconds / a_call.get(name, 1) for key, seconds in timing._asdict().items()}
        for name, timing in found.items()
    }


def _epoch_steps() -> int:
    """On an accelerator enough that a call's overhead is the small part that it is in training."""
    return 4 if jax.default_backend() == "cpu" else 32


def torch_ways(depth: int, width: int, subnets: int) -> dict[str, Callable[[], Any]]:
    """PyTorch's steps, where it is installed and runs on the same device."""
    if jax.default_backend() != "cpu":
        return {}
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
        "torch_compiled": torch_steps.compiled_step(depth, width, images, labels),
    }


def recipe(augment: Any = training.no_augment) -> training.Recipe:
    """The study's own, without augmentation unless asked for."""
    return training.Recipe(training.sgd(0.1, 1000), batch_size=BATCH, augment=augment)


def side_by_side(
    network: Any, subnets: int, how: training.Recipe | None = None, **options: Any
) -> Made:
    """The phase of all sub-networks, and its variables."""
    stacked = dcjax.init(network, subnets, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    subnet = dcjax.decompose(network, subnets)
    samples = dcjax.samples.replicate(subnets)
    return training.side_by_side(subnet, samples, how or recipe(), subnets, **options), stacked


def data_parallel(network: Any, devices: Any = None) -> Made:
    """The phase of one network, and its variables."""
    phase = training.data_parallel(network, dcjax.samples.replicate(1), recipe(), devices=devices)
    variables = dcjax.init(network, 1, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[0]
    return phase, variables


def compiled(
    phase: training.Phase, variables: Any
) -> tuple[training.Phase, training.TrainState, training.Data, float]:
    """The phase compiled for random images, its state, the images, the seconds of compilation."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_epoch_steps() * BATCH, 32, 32, 3)).astype(np.uint8)
    data = phase.place(images, rng.integers(0, 10, len(images)))
    state = phase.start(variables, jax.random.key(1))
    phase, seconds = training.compile(phase, state, data)
    return phase, state, data, seconds


def runner(
    phase: training.Phase, state: training.TrainState, data: training.Data
) -> Callable[[], Any]:
    """One call after another of a compiled phase: a step, or an epoch where those are compiled."""
    order = phase.shuffle(state, data)
    call = phase.step if phase.epoch is None else phase.epoch
    box = [state]

    def step() -> None:
        box[0], loss = call(box[0], data, order)
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
