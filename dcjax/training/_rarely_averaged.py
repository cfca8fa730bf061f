"""Copies of one network that train apart and are averaged now and then."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding
from jaxtyping import Array, Key, PyTree

from dcjax._linen.network import samples_or_replicate
from dcjax._linen.under import check_module
from dcjax._pytrees import copy_tree
from dcjax.samples import Samples
from dcjax.training._data import Data, batcher, place
from dcjax.training._devices import DEVICES, Device, choose_devices, engine_for, on_one, sharding
from dcjax.training._learner import learner
from dcjax.training._pmap import members_on
from dcjax.training._processes import check_same, meet
from dcjax.training._recipe import Recipe, check_recipe
from dcjax.training._state import TrainState
from dcjax.training._trainer import Trainer, check_start, guarded

_TAKES = "rarely_averaged takes the global network, and start its variables, as data_parallel does."


class Outer(NamedTuple):
    """The optimiser's state of a copy: its own, and what all copies share.

    * `inner`: the state of the recipe's optimiser.
    * `anchor`: the parameters after the last average; None without an outer optimiser.
    * `outer`: the state of the outer optimiser.
    """

    inner: PyTree
    anchor: PyTree = None
    outer: PyTree = ()


def rarely_averaged(
    network: nn.Module,
    samples: Samples | None,
    recipe: Recipe,
    every: int,
    *,
    outer: optax.GradientTransformation | None = None,
    devices: Sequence[Device] | None = None,
) -> Trainer:
    """Make the trainer of one network that hardly communicates: a copy on each device.

    Each batch is cut over the D devices, as by `data_parallel`, but each copy takes a step of its
    own on its part. After every N = `every` steps the copies' parameters θ₁ … θ_D become

        θ ← (1/D) Σ θ_d,    or with an outer optimiser    θ ← θ + outer(θ − (1/D) Σ θ_d),

    where the θ on the right is the one after the step before, and outer's update is that of the
    "gradient" in brackets. Batch statistics are averaged too; momenta stay with each copy. All of
    it travels as one vector. Between two averages nothing is communicated: the compiled step has no
    collective, and so 1/N of the bytes of `data_parallel` are sent.

    With `every=1`, plain SGD and without batch statistics it is data-parallel training.
    `outer=optax.sgd(0.7, momentum=0.9, nesterov=True)` is DiLoCo. `every` beyond the last step is
    one average at the end, by `finish`, as in SWAP.

    Args:
      network: the global network, a Flax Linen module.
      samples: as for `data_parallel`.
      recipe: how each copy is trained; the batch is that of all copies together.
      every: N, the steps between two averages, ≥ 1.
      outer: an optax transformation; None takes the average itself.
      devices: the devices to choose from, by default `jax.devices()`: those of all processes under
        `jax.distributed`.

    Returns:
      The trainer. `start` takes the variables of one network and `finish` returns the copies'
      average. All else has a leading axis for the copies of this process: losses, logits, and the
      states of `to_host` and `to_devices`, so each process keeps checkpoints of its own. `fit`
      averages after the steps by `trainer.average(step, state)`; a loop of your own calls it.

    Raises:
      ValueError: the batch cannot be cut, or `every` is below 1. Later: the processes hold
        different values.

    References:
      DiLoCo: https://arxiv.org/abs/2311.08105; SWAP: https://arxiv.org/abs/2001.02312.

    >>> import dcjax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> trainer = rarely_averaged(network, None, Recipe(optax.sgd(0.1)), every=50)
    >>> trainer.lead == (len(jax.devices()),)
    True
    """
    check_module(network)
    samples = samples_or_replicate(samples, 1)
    check_recipe(recipe)
    if (every := operator.index(every)) < 1:
        raise ValueError(f"expected every >= 1, got {every}")
    devices = choose_devices(recipe.batch_size, devices)
    numbers = [n for n, d in enumerate(devices) if d.process_index == jax.process_index()]
    mine = tuple(devices[n] for n in numbers)
    if not mine:
        raise ValueError(f"expected devices of this process, {jax.process_index()}, got {devices}")
    part = recipe.batch_size // len(devices)
    placed = members_on(mine, len(mine), engine_for(mine[0].platform).members)
    one = learner(network, recipe, lambda x, _: samples.join(x), _TAKES)

    def start(variables: PyTree, key: Key[Array, ""], opt_state: PyTree = None) -> TrainState:
        check_start(variables, key)
        check_same((variables, key, opt_state), devices, "variables and key")
        state = jax.jit(one.init)(variables, key, opt_state)
        shared = Outer(state.opt_state)
        if outer is not None:
            params = state.variables["params"]
            shared = shared._replace(anchor=params, outer=jax.jit(outer.init)(params))
        state = state._replace(opt_state=shared)
        return placed.put(jax.tree.map(lambda leaf: jnp.stack([leaf] * len(mine)), state))

    def shuffle(state: TrainState, data: Data) -> Array:
        assert data.members is not None
        order = one.shuffle(state, data)
        return jax.lax.dynamic_slice_in_dim(order, data.members * part, part, axis=1)

    def step(state: TrainState, data: Data, order: Array) -> tuple[TrainState, Array]:
        # Each copy augments its images with random numbers of its own.
        assert data.members is not None
        key = jax.random.fold_in(state.key, data.members)
        own = state._replace(key=key, opt_state=state.opt_state.inner)
        new, loss = one.step(own, data, order)
        return new._replace(
            key=state.key, opt_state=state.opt_state._replace(inner=new.opt_state)
        ), loss

    def renew(state: TrainState, mean: PyTree) -> TrainState:
        if outer is None:
            return state._replace(variables=mean)
        inner, anchor, past = state.opt_state
        fall = jax.tree.map(jnp.subtract, anchor, mean["params"])
        change, past = outer.update(fall, past, anchor)
        params = optax.apply_updates(anchor, change)
        return state._replace(
            variables={**mean, "params": params}, opt_state=Outer(inner, params, past)
        )

    mean = _mean_over(devices, mine)
    renewed = placed.map(renew, (0, None), donate_argnums=0)

    def average(step: int, state: TrainState) -> TrainState:
        return state if step % every else renewed(state, mean(state.variables))

    def finish(state: TrainState) -> PyTree:
        return copy_tree(on_one(mean(state.result), mine[0]))

    def placed_split(images: Any, labels: Any) -> Data:
        check_same((images, labels), devices, "images and labels")
        return place(mine, placed.put(jnp.array(numbers, jnp.int32)), images, labels)

    shared = Data(None, None, 0)  # pyright: ignore[reportArgumentType] – axes in the place of arrays
    trainer = Trainer(
        place=placed_split,
        start=start,
        finish=finish,
        to_devices=placed.put,
        to_host=placed.get,
        shuffle=placed.map(shuffle, (0, shared)),
        step=placed.map(step, (0, shared, 0), donate_argnums=0),
        epoch=None,
        batch=batcher(recipe.batch_size, sharding(mine)),
        forward=placed.map(one.forward, (0, shared)),
        batch_size=recipe.batch_size,
        lead=(len(mine),),
        devices=devices,
        classes=one.classes,
        average=average,
        every=every,
    )
    return guarded(trainer)


def _mean_over(devices: Sequence[Device], mine: Sequence[Device]) -> Callable[[PyTree], PyTree]:
    """Make the function that averages a tree over all copies: one collective, of one vector.

    Its argument's leaves have the axes (this process's devices, 1, …); its result is on each of
    these devices. Of integers and keys it returns copy 0's.
    """
    cut, whole, local = sharding(devices, DEVICES), sharding(devices), sharding(mine)
    program = jax.jit(_mean, out_shardings=whole)

    def mean(tree: PyTree) -> PyTree:
        def widened(leaf: Array) -> Array:
            return _rewrap(leaf, (len(devices), *leaf.shape[1:]), cut)

        meet(devices)
        means = program(jax.tree.map(widened, tree))
        return jax.tree.map(lambda leaf: _rewrap(leaf, leaf.shape, local), means)

    return mean


def _mean(tree: PyTree) -> PyTree:
    tree = jax.tree.map(lambda leaf: leaf[:, 0], tree)
    first = jax.tree.map(lambda leaf: leaf[0], tree)
    leaves, structure = jax.tree.flatten(tree)
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    vectors = jax.vmap(lambda parts: ravel_pytree(parts)[0])([leaves[i] for i in floats])
    firsts = jax.tree.leaves(first)
    _, unravel = ravel_pytree([firsts[i] for i in floats])
    for i, leaf in zip(floats, unravel(vectors.mean(0)), strict=True):
        firsts[i] = leaf
    return structure.unflatten(firsts)


def _rewrap(leaf: Array, shape: tuple[int, ...], form: NamedSharding) -> Array:
    """Take this process's pieces of an array for one over more, or over fewer, processes."""
    pieces = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, form, pieces)
