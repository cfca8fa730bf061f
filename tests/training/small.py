"""A small run of the method, the same in one process and in several.

Importing it starts no backend.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import dcjax
from dcjax import training

SUBNETS, EPOCHS, BATCH = 4, 2, 16


class Net(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.width, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    bright = labels[:, None, None, None] * 40 + rng.integers(0, 150, (count, 8, 8, 3))
    return bright.astype(np.uint8), labels


def recipe() -> training.Recipe:
    return training.Recipe(training.sgd(0.1, steps=6, warmup=1), batch_size=BATCH)


def initial() -> dcjax.Stacked:
    return dcjax.init(Net(), SUBNETS, jax.random.key(1), jnp.zeros((1, 8, 8, 3)))


def train_subnets(members: Sequence[int]) -> dcjax.Stacked:
    """Train these on this process's devices."""
    narrow = dcjax.decompose(Net(), SUBNETS)
    start = jax.tree.map(lambda leaf: leaf[np.array(members, int)], initial())
    if not members:
        return start
    trainer = training.side_by_side(narrow, None, recipe(), SUBNETS, members=members)
    state = trainer.start(start, jax.random.key(2))
    fitted = training.fit(trainer, state, trainer.place(*images(50)), EPOCHS)
    return trainer.finish(fitted.state)


def train_rarely_averaged() -> dict[str, Any]:
    """Train a copy on each of four devices, and return the average and this process's losses."""
    outer = training.sgd(0.7, steps=6, final_rate=0.7)
    trainer = training.rarely_averaged(Net(), None, recipe(), every=2, outer=outer)
    state = trainer.start(dcjax.compose(initial()), jax.random.key(3))
    data = trainer.place(*images(50))
    fitted = training.fit(trainer, state, data, EPOCHS)
    losses = np.concatenate([epoch.losses for epoch in fitted.history])
    return {**flat(trainer.finish(fitted.state)), "losses": losses}


def global_trainer(**options: Any) -> training.Trainer:
    return training.data_parallel(Net(), None, recipe(), **options)


def finetune(trainer: training.Trainer, stacked: dcjax.Stacked) -> dict[str, Any]:
    """Compose and train on; return all that came out, by name."""
    state = trainer.start(dcjax.compose(stacked), jax.random.key(3))
    composed = flat(trainer.to_host(state).variables)
    fitted = training.fit(trainer, state, trainer.place(*images(50)), EPOCHS)
    logits = training.evaluate(trainer, fitted.state, trainer.place(*images(37, seed=1)))
    again = trainer.to_devices(trainer.to_host(fitted.state))
    return {
        **{f"composed {name}": leaf for name, leaf in composed.items()},
        **{f"trained {name}": leaf for name, leaf in flat(trainer.finish(again)).items()},
        "losses": np.concatenate([epoch.losses for epoch in fitted.history]),
        "logits": logits,
    }


def flat(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
