"""K sub-networks side by side, without communication."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dcjax._checks import check_key
from dcjax.training._data import Data, batcher, placer
from dcjax.training._devices import (
    Device,
    Engine,
    choose_devices,
    engine_for,
    sharding,
    spread_members,
)
from dcjax.training._learner import learner
from dcjax.training._recipe import Recipe
from dcjax.training._state import TrainState
from dcjax.training._trainer import Phase

PyTree = Any


def side_by_side(
    subnet: nn.Module,
    samples: Any,
    recipe: Recipe,
    subnets: int,
    *,
    members: Sequence[int] | None = None,
    devices: Sequence[Device] | None = None,
    engine: Engine | None = None,
    shard_data: bool = False,
) -> Phase:
    """The phase that trains K sub-networks in one `jax.pmap` across the devices.

    Sub-network k draws everything, the order of its data, its augmentation, its dropout, from its
    own key `fold_in(key, k)`, and sees `samples.split(x)[k]` of its own augmented batch. Optimiser
    and keys live inside the map, and nothing is communicated: a sub-network that diverges leaves
    the others as they are, and one that is trained alone comes out bitwise the same.

    Args:
      subnet: the sub-network, a Flax Linen module.
      samples: how the input is decomposed (`dcjax.samples`).
      recipe: how each of them is trained.
      subnets: K.
      members: the numbers of the sub-networks to train, all by default. States and variables have
        as many entries in their leading axis.
      devices: those to use, `jax.devices()` by default. As many of them as the largest divisor of
        K allows are used.
      engine: how each device runs its sub-networks, and whether an epoch is one call; by default
        what is fastest on it. Bitwise the same alone as together is promised for `"unrolled"`, the
        CPU's.
      shard_data: whether sub-network k sees only its own K-th of the training examples, those of
        the numbers n with n mod K = k; of N examples the last N mod K belong to none. An epoch has
        as many steps all the same.

    Returns:
      The phase. `start` takes a `Stacked`, or any pytree of variables with that leading axis.

    Raises:
      ValueError: if `members` are not numbers of sub-networks. Later, from the functions: if the
        variables' leading axis or the samples do not fit.

    >>> import dcjax, optax
    >>> subnet = dcjax.models.CNN(width=2, num_classes=10)
    >>> phase = side_by_side(subnet, dcjax.samples.replicate(4), Recipe(optax.sgd(0.1)), 4)
    >>> phase.lead
    (4,)
    """
    numbers = tuple(range(subnets)) if members is None else tuple(members)
    if not numbers or len({*numbers} & {*range(subnets)}) < len(numbers):
        raise ValueError(
            f"expected members to be different numbers from 0 to {subnets - 1}, got {members}"
        )
    devices = choose_devices(len(numbers), devices)
    engine = engine or engine_for(devices[0].platform)
    spread = spread_members(len(numbers), devices, engine.members)

    def view(x: Array, member: Any) -> Array:
        views = samples.split(x)
        if len(views) != subnets:  # an index beyond the end would silently become the last one
            raise ValueError(
                f"samples.split gives {len(views)} inputs for {subnets} sub-networks; "
                f"make the samples for {subnets}"
            )
        return views[member]

    one = learner(subnet, recipe, view, shares=subnets if shard_data else 1)

    def start(variables: PyTree, key: Key[Array, ""]) -> TrainState:
        check_key(key, "the order of arguments is start(variables, key)")
        _check_lead(variables, len(numbers))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(numbers))
        return spread.put(jax.jit(jax.vmap(one.init))(variables, keys))

    shared = Data(None, None, 0)  # pyright: ignore[reportArgumentType] – axes in the place of arrays
    return Phase(
        place=placer(devices, spread.put(jnp.array(numbers, jnp.int32))),
        start=start,
        finish=lambda state: spread.get(state.result),
        spread=spread.put,
        gather=spread.get,
        shuffle=spread.map(one.shuffle, (0, shared)),
        step=spread.map(one.step, (0, shared, 0), donate_argnums=0),
        epoch=spread.map(one.epoch, (0, shared, 0), donate_argnums=0)
        if engine.whole_epochs
        else None,
        batch=batcher(recipe.batch_size, sharding(devices)),
        forward=spread.map(one.forward, (0, shared)),
        batch_size=recipe.batch_size,
        lead=(len(numbers),),
        devices=devices,
    )


def _check_lead(variables: PyTree, members: int) -> None:
    wrong = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
        if leaf.shape[:1] != (members,)
    }
    if wrong:
        raise ValueError(
            f"expected variables with the leading axis {members}, one entry for each sub-network "
            f"in training, got {wrong}; for some of K take "
            "jax.tree.map(lambda *v: jnp.stack(v), *(stacked[k] for k in members))"
        )
