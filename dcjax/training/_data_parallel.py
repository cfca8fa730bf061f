"""One network, its batches spread over the devices."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Key

from dcjax._checks import check_key
from dcjax._compose.stacked import Stacked
from dcjax._mesh import DEVICES
from dcjax._pytrees import copy_tree
from dcjax.training._data import batcher, placer
from dcjax.training._devices import Device, Engine, choose_devices, engine_for, on_mesh, sharding
from dcjax.training._learner import learner
from dcjax.training._recipe import Recipe
from dcjax.training._retrace_guard import traced_once
from dcjax.training._state import TrainState
from dcjax.training._trainer import Phase

PyTree = Any


def data_parallel(
    network: nn.Module,
    samples: Any,
    recipe: Recipe,
    *,
    devices: Sequence[Device] | None = None,
    engine: Engine | None = None,
) -> Phase:
    """The phase that trains one network, each batch spread over the devices.

    It fine-tunes the composed network and trains the baseline from scratch alike. The parameters
    are replicated. The program is that of one device, partitioned by XLA: the loss, the gradient
    and the statistics of batch normalisation are those of the whole batch, and nothing depends on
    the number of devices but the rounding of sums.

    Args:
      network: the global network, a Flax Linen module.
      samples: how the input is decomposed (`dcjax.samples`); the network sees `samples.join(x)`.
      recipe: how it is trained.
      devices: those to use, `jax.devices()` by default; the largest divisor of the batch size that
        they allow are used.
      engine: how they are kept busy, by default what is fastest on them; here only whether an epoch
        is one call.

    Returns:
      The phase. `start` takes plain variables; a `Stacked`, which is to be composed first, is a
      `ValueError`.

    >>> import dcjax, optax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> phase = data_parallel(network, dcjax.samples.replicate(4), Recipe(optax.sgd(0.1)))
    >>> phase.lead
    ()
    """
    devices = choose_devices(recipe.batch_size, devices)
    engine = engine or engine_for(devices[0].platform)
    replicated = sharding(devices)
    one = learner(network, recipe, lambda x, _: samples.join(x))

    # device_put alone may keep the same buffers, and the next step consumes them.
    def spread(tree: PyTree) -> PyTree:
        return jax.device_put(copy_tree(tree), replicated)

    def gather(tree: PyTree) -> PyTree:
        return copy_tree(jax.device_put(tree, devices[0]))

    def start(variables: PyTree, key: Key[Array, ""]) -> TrainState:
        if isinstance(variables, Stacked):
            raise ValueError(
                f"expected the global network's variables, got {len(variables)} stacked "
                "sub-networks': dcjax.compose(stacked) makes them"
            )
        check_key(key, "the order of arguments is start(variables, key)")
        return spread(jax.jit(one.init)(variables, key))

    def trained(function: Any) -> Any:
        function = traced_once(on_mesh(function, devices))
        return jax.jit(function, out_shardings=replicated, donate_argnums=0)

    # Only the order and the evaluation's batches are cut over the devices; from there XLA follows.
    return Phase(
        place=placer(devices),
        start=start,
        finish=lambda state: gather(state.result),
        spread=spread,
        gather=gather,
        shuffle=jax.jit(traced_once(one.shuffle), out_shardings=sharding(devices, None, DEVICES)),
        step=trained(one.step),
        epoch=trained(one.epoch) if engine.whole_epochs else None,
        batch=batcher(recipe.batch_size, sharding(devices, DEVICES)),
        forward=jax.jit(traced_once(on_mesh(one.forward, devices))),
        batch_size=recipe.batch_size,
        lead=(),
        devices=devices,
    )
