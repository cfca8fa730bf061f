"""K sub-networks side by side, without communication."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from dcjax._checks import check_key, check_subnets, leaves_of, path_name, raise_listed
from dcjax._compose.head_weights import check_head
from dcjax._compose.stacked import Stacked
from dcjax._linen.network import samples_or_replicate
from dcjax._linen.under import check_module
from dcjax.samples import Samples
from dcjax.training._data import Data, batcher, place
from dcjax.training._devices import Device, Engine, choose_devices, engine_for, sharding
from dcjax.training._learner import learner
from dcjax.training._pmap import members_on
from dcjax.training._recipe import Recipe, check_recipe, of_classes
from dcjax.training._state import TrainState
from dcjax.training._trainer import Trainer, guarded

_TAKES = (
    "side_by_side takes the sub-network, dcjax.decompose(network, K), and start the variables of "
    "dcjax.init(network, K, key, x)."
)


def side_by_side(
    subnet: nn.Module,
    samples: Samples | None,
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
      samples: how the input is decomposed (`dcjax.samples`); None stands for `replicate(K)`.
      recipe: how each sub-network is trained.
      subnets: K.
      members: the numbers of the sub-networks to train, by default all. States and variables have
        as many entries in their leading axis.
      devices: the devices of this process to choose from, by default `jax.local_devices()`; as many
        are used as the largest divisor of the number of members allows.
      engine: how each device runs its sub-networks, by default the fastest way. Only `"unrolled"`,
        the CPU's, promises the same bits alone as together.

    Returns:
      The trainer. `start` takes a `Stacked`, or any pytree of variables with that leading axis.

    Raises:
      ValueError: `members` are not distinct numbers of sub-networks. Later, from the trainer's
        functions: the variables' leading axis or the samples do not fit, or the network has no
        head and the loss is the recipe's own, of logits.

    >>> import dcjax, optax
    >>> subnet = dcjax.models.CNN(width=2, num_classes=10)
    >>> trainer = side_by_side(subnet, dcjax.samples.replicate(4), Recipe(optax.sgd(0.1)), 4)
    >>> trainer.lead
    (4,)
    """
    check_module(subnet)
    subnets = check_subnets(subnets)
    samples = samples_or_replicate(samples, subnets)
    check_recipe(recipe)
    numbers = tuple(range(subnets)) if members is None else tuple(members)
    if not numbers or len({*numbers} & {*range(subnets)}) < len(numbers):
        raise ValueError(
            f"expected members to be different numbers from 0 to {subnets - 1}, got {members}"
        )
    devices = jax.local_devices() if devices is None else devices
    if any(device.process_index != jax.process_index() for device in devices):
        raise ValueError(
            f"expected devices of this process, {jax.process_index()}, got {devices}: nothing is "
            "communicated, so each process trains its own sub-networks, "
            f"members=local_members({subnets}), on devices=jax.local_devices()"
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

    one = learner(subnet, recipe, view, _TAKES)

    def start(variables: PyTree, key: Key[Array, ""], opt_state: PyTree = None) -> TrainState:
        check_key(key, "the order of arguments is start(variables, key)")
        leaves = leaves_of(nn.meta.unbox(variables), "variables")
        raise_listed(
            f"expected the variables of {len(numbers)} sub-networks, with a leading axis of "
            f"{len(numbers)}, as of dcjax.init or dcjax.stack; got",
            [
                f"{path_name(path)}: shape {jnp.shape(leaf)}"
                for path, leaf in leaves.items()
                if jnp.shape(leaf)[:1] != (len(numbers),)
            ],
            "dcjax.extract(variables, like=layout) cuts the variables of a global network",
        )
        if isinstance(variables, Stacked) and of_classes(recipe):
            check_head(variables.layout)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(numbers))
        return placed.put(jax.jit(jax.vmap(one.init))(variables, keys, opt_state))

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
    return guarded(trainer)
