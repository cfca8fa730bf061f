"""A small study, and its trainers, compiled once for all tests of training."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcjax
from dcjax import training

SUBNETS = 4
EPOCHS = 2


class Net(nn.Module):
    """Convolution, batch statistics, dropout, head: all that a step has to carry."""

    width: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.width, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(3)(x.mean((1, 2)))


class Study(NamedTuple):
    network: nn.Module
    samples: Any
    recipe: training.Recipe
    variables: Any  # of SUBNETS networks, stacked
    key: jax.Array
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Run(NamedTuple):
    trainer: training.Trainer  # compiled
    train: training.Data
    test: training.Data
    fitted: training.Fit


@pytest.fixture(scope="session")
def study() -> Study:
    rng = np.random.default_rng(0)
    network = Net()
    images = rng.integers(0, 256, (87, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, 87)
    keys = jax.random.split(jax.random.key(1), SUBNETS)
    variables = jax.vmap(network.init, (0, None))(keys, jnp.zeros((1, 8, 8, 3)))
    return Study(
        network=network,
        samples=dcjax.samples.replicate(SUBNETS),
        recipe=training.Recipe(training.sgd(0.1, steps=6, warmup=1), batch_size=16),
        variables=variables,
        key=jax.random.key(2),
        train=(images[:50], labels[:50]),  # three whole batches and a rest
        test=(images[50:], labels[50:]),  # two whole batches and a rest
    )


def run(study: Study, trainer: training.Trainer, variables: Any) -> Run:
    train, test = trainer.place(*study.train), trainer.place(*study.test)
    state = trainer.start(variables, study.key)
    trainer, _ = training.compile(trainer, state, train, test)
    return Run(trainer, train, test, training.fit(trainer, state, train, EPOCHS))


@pytest.fixture(scope="session")
def side_by_side(study):
    """Trains sub-networks (all by default) on a number of devices, and keeps what came out."""
    runs = {}

    def trained(devices: int, members: tuple[int, ...] = tuple(range(SUBNETS))) -> Run:
        if (devices, members) not in runs:
            trainer = training.side_by_side(
                study.network,
                study.samples,
                study.recipe,
                SUBNETS,
                members=members,
                devices=jax.devices()[:devices],
            )
            variables = jax.tree.map(lambda leaf: leaf[jnp.array(members)], study.variables)
            runs[devices, members] = run(study, trainer, variables)
        return runs[devices, members]

    return trained


@pytest.fixture(scope="session")
def data_parallel(study):
    """Trains one network on a number of devices, and keeps what came out."""
    runs = {}

    def trained(devices: int) -> Run:
        if devices not in runs:
            trainer = training.data_parallel(
                study.network, study.samples, study.recipe, devices=jax.devices()[:devices]
            )
            variables = jax.tree.map(lambda leaf: leaf[0], study.variables)
            runs[devices] = run(study, trainer, variables)
        return runs[devices]

    return trained
