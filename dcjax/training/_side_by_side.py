"""K sub-networks side by side, without communication."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from dcjax._checks import check_key
from dcjax.training._data import Data, batcher, place
from dcjax.training._devices import Device, Engine, choose_devices, engine_for, sharding
from dcjax.training._learner import learner
from dcjax.training._pmap import members_on
from dcjax.training._recipe import Recipe
from dcjax.training._state import TrainState
from dcjax.training._trainer import Trainer, outside_mesh


def side_by_side(
    subnet: nn.Module,
    samples: Any,
    recipe: Recipe,
    subnets: int,
    *,
    members: Sequence[int] | None = None,
    devices: Sequence[Device] | None = None,
    engine: Engine | None = None,
) -> Trainer:
    """Make the trainer of K sub-networks, one `jax.pmap` across the devices.

    Sub-network k draws the order of its data, its augmentation and its dropout from the key
    `fold_in(key, k)`, and sees `samples.split(x)[k]` of its augmented batch. Nothing is
    communicated: a sub-network that diverges leaves the others as they are, and one that is trained
    alone comes out bitwise the same.

    Args:
      subnet: the sub-network, a Flax Linen module.
      samples: how the input is decomposed (`dcjax.samples`).
      recipe: how each sub-network is trained.
      subnets: K.
      members: the numbers of the sub-networks to train, by default all. States and variables have
        as many entries in their leading axis.
      devices: the devices to choose from, by default `jax.devices()`; as many are used as the
        largest divisor of the number of members allows.
      engine: how each device runs its sub-networks, by default the fastest way. Only `"unrolled"`,
        the CPU's, promises the same bits alone as together.

    Returns:
      The trainer. `start` takes a `Stacked`, or any pytree of variables with that leading axis.

    Raises:
      ValueError: `members` are not distinct numbers of sub-networks. Later, from the trainer's
        functions: the variables' leading axis or the samples do not fit.

    >>> import dcjax, optax
    >>> subnet = dcjax.models.CNN(width=2, num_classes=10)
    >>> trainer = side_by_side(subnet, dcjax.samples.replicate(4), Recipe(optax.sgd(0.1)), 4)
    >>> trainer.lead
    (4,)
    """
    numbers = tuple(range(subnets)) if members is None else tuple(members)
    if not numbers or len({*numbers} & {*range(subnets)}) < len(numbers):
        raise ValueError(
            f"expected members to be different numbers from 0 to {subnets - 1}, got {members}"
        )
    devices = choose_devices(len(numbers), devices)
    engine = engine or engine_for(devices[0].platform)
    placed = members_on(devices, len(numbers), engine.members)

    def view(x: Array, member: Any) -> Array:
        views = samples.split(x)
        if len(views) != subnets:  # JAX would clamp an index beyond the end to the last entry
            raise ValueError(
                f"samples.split gives {len(views)} inputs for {subnets} sub-networks; "
                f"make the samples for {subnets}"
            )
        return views[member]

    one = learner(subnet, recipe, view)

    def start(variables: PyTree, key: Key[Array, ""]) -> TrainState:
        check_key(key, "the order of arguments is start(variables, key)")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(numbers))
        return placed.put(jax.jit(jax.vmap(one.init))(variables, keys))

    shared = Data(None, None, 0)  # pyright: ignore[reportArgumentType] – axes in the place of arrays
    train = functools.partial(placed.map, in_axes=(0, shared, 0), donate_argnums=0)
    trainer = Trainer(
        place=functools.partial(place, devices, placed.put(jnp.array(numbers, jnp.int32))),
        start=start,
        finish=lambda state: placed.get(state.result),
        to_devices=placed.put,
        to_host=placed.get,
        shuffle=placed.map(one.shuffle, (0, shared)),
        step=train(one.step),
        epoch=train(one.epoch) if engine.whole_epochs else None,
        batch=batcher(recipe.batch_size, sharding(devices)),
        forward=placed.map(one.forward, (0, shared)),
        batch_size=recipe.batch_size,
        lead=(len(numbers),),
        devices=devices,
        classes=one.classes,
    )
    return outside_mesh(trainer)
