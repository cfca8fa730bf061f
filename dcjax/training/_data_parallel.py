"""One network, each batch cut over the devices."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Key, PyTree

from dcjax._linen.network import samples_or_replicate
from dcjax._linen.under import check_module
from dcjax._pytrees import copy_tree
from dcjax.samples import Samples
from dcjax.training._data import batcher, place
from dcjax.training._devices import (
    DEVICES,
    Device,
    Engine,
    choose_devices,
    engine_for,
    on_mesh,
    on_one,
    sharding,
)
from dcjax.training._learner import learner
from dcjax.training._processes import plain, put
from dcjax.training._recipe import Recipe, check_recipe
from dcjax.training._state import TrainState
from dcjax.training._trainer import Trainer, check_start, guarded

_TAKES = (
    "data_parallel takes the global network, and start its variables: dcjax.compose(stacked), or "
    "network.init(key, samples.join(x))."
)


def data_parallel(
    network: nn.Module,
    samples: Samples | None,
    recipe: Recipe,
    *,
    devices: Sequence[Device] | None = None,
    engine: Engine | None = None,
) -> Trainer:
    """Make the trainer of one network, each batch cut over the devices.

    It fine-tunes the composed network, and trains the baseline from scratch. Parameters are
    replicated. XLA partitions the program of one device: the loss, the gradient and the statistics
    of batch normalisation are those of the whole batch, so only the rounding of sums depends on the
    number of devices. Under `jax.distributed` the devices are those of all processes. Every process
    makes the trainer and calls its functions with the same values, which are compared by digest;
    each computes its part of the batch.

    Args:
      network: the global network, a Flax Linen module.
      samples: how the input is decomposed (`dcjax.samples`); the network sees `samples.join(x)`,
        and x itself for None.
      recipe: how the network is trained.
      devices: the devices to choose from, by default `jax.devices()`; as many are used as the
        largest divisor of the batch size allows, equally many of each process.
      engine: only its `whole_epochs` matters here; by default the fastest way.

    Returns:
      The trainer. `start` takes plain variables; a `Stacked` is a `ValueError`, because it has to
      be composed first.

    Raises:
      ValueError: the processes cannot share the batch equally. Later, from `place`, `start` and
        `to_devices`: they hold different values.

    >>> import dcjax, optax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> trainer = data_parallel(network, dcjax.samples.replicate(4), Recipe(optax.sgd(0.1)))
    >>> trainer.lead
    ()
    """
    check_module(network)
    samples = samples_or_replicate(samples, 1)
    check_recipe(recipe)
    devices = choose_devices(recipe.batch_size, devices)
    engine = engine or engine_for(devices[0].platform)
    replicated = sharding(devices)
    here = next((d for d in devices if d.process_index == jax.process_index()), None)
    if here is None:
        raise ValueError(
            f"expected devices of this process, {jax.process_index()}, among those that train, got "
            f"{devices}"
        )
    one = learner(network, recipe, lambda x, _: samples.join(x), _TAKES)

    # device_put alone may keep the same buffers, which the next step would donate.
    def to_devices(tree: PyTree) -> PyTree:
        return put(copy_tree(tree), replicated, "variables and states")

    def to_host(tree: PyTree) -> PyTree:
        return copy_tree(on_one(plain(tree), here))

    def start(variables: PyTree, key: Key[Array, ""], opt_state: PyTree = None) -> TrainState:
        check_start(variables, key)
        return to_devices(jax.jit(one.init)(variables, key, opt_state))

    def compiled(function: Any) -> Any:
        return jax.jit(on_mesh(function, devices), out_shardings=replicated, donate_argnums=0)

    # Only the order and the evaluation's batches are cut explicitly; XLA cuts what follows.
    trainer = Trainer(
        place=functools.partial(place, devices, None),
        start=start,
        finish=lambda state: to_host(state.result),
        to_devices=to_devices,
        to_host=to_host,
        shuffle=jax.jit(one.shuffle, out_shardings=sharding(devices, None, DEVICES)),
        step=compiled(one.step),
        epoch=compiled(one.epoch) if engine.whole_epochs else None,
        batch=batcher(recipe.batch_size, sharding(devices, DEVICES)),
        forward=jax.jit(on_mesh(one.forward, devices), out_shardings=replicated),
        batch_size=recipe.batch_size,
        lead=(),
        devices=devices,
        classes=one.classes,
    )
    return guarded(trainer)
