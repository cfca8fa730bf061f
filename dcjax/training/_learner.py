"""The steps of one network: pure functions that both trainers are made of."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.errors import (
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    ScopeParamShapeError,
)
from jaxtyping import Array, Float, Int, Key, PyTree

from dcjax._checks import shown
from dcjax._compose.stacked import Stacked
from dcjax.training._data import Data
from dcjax.training._recipe import Recipe, of_classes, steps_per_epoch
from dcjax.training._state import TrainState

# Each use of random numbers folds a number into the key, so that no two share a stream.
_ORDER, _AUGMENT, _NETWORK = range(3)


class Learner(NamedTuple):
    """The functions of one network; `Trainer` documents them."""

    init: Callable[..., TrainState]
    shuffle: Callable[[TrainState, Data], Int[Array, "steps batch"]]
    step: Callable[[TrainState, Data, Int[Array, "steps batch"]], tuple[TrainState, Array]]
    epoch: Callable[[TrainState, Data, Int[Array, "steps batch"]], tuple[TrainState, Array]]
    forward: Callable[[PyTree, Data], Float[Array, "batch classes"]]
    classes: Callable[[], int | None]


def learner(
    network: nn.Module, recipe: Recipe, view: Callable[[Array, Any], Array], takes: str = ""
) -> Learner:
    """Make the functions of a network that sees `view(x, member)` of a normalised batch x.

    `takes` tells the caller which network and variables the trainer takes, should they not fit.
    """

    def call(variables: PyTree, x: Array, **kwargs: Any) -> Any:
        try:
            return network.apply(variables, x, **kwargs)
        except (ScopeParamShapeError, ScopeParamNotFoundError, ScopeCollectionNotFound) as error:
            error.add_note(
                f"The variables do not fit {type(network).__name__} and a batch of shape "
                f"{x.shape}. {takes} Images are (N, H, W, C)."
            )
            raise

    logits_seen: set[int] = set()

    def init(variables: PyTree, key: Key[Array, ""], opt_state: PyTree = None) -> TrainState:
        variables = nn.meta.unbox(variables)  # of nn.with_partitioning
        collections = _collections(variables)
        if not isinstance(collections, Mapping) or "params" not in collections:
            got = list(collections) if isinstance(collections, Mapping) else shown(collections)
            raise ValueError(
                "expected all of a network's variables, as from network.init: {'params': …, …}, "
                f"got {got}"
            )
        if opt_state is None:
            opt_state = recipe.optimizer.init(collections["params"])
        averaged = jax.tree.map(_widest, variables) if recipe.average else None
        return TrainState(jnp.int32(0), key, variables, opt_state, averaged)

    def shuffle(state: TrainState, data: Data) -> Int[Array, "steps batch"]:
        examples = len(data.labels)
        steps = steps_per_epoch(examples, recipe.batch_size)
        key = _stream(state.key, _ORDER, state.step // steps)
        order = jax.random.permutation(key, examples)
        return order[: steps * recipe.batch_size].reshape(steps, recipe.batch_size)

    def step(state: TrainState, data: Data, order: Array) -> tuple[TrainState, Array]:
        # The order is that of the whole epoch, so that training resumes in the middle of it.
        chosen = order[state.step % len(order)]
        images = recipe.augment(_stream(state.key, _AUGMENT, state.step), data.images[chosen])
        x, labels = view(recipe.normalise(images), data.members), data.labels[chosen]
        rest = dict(_collections(state.variables))
        params = rest.pop("params")
        key = _stream(state.key, _NETWORK, state.step)
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(recipe.rngs)}

        def cost(params: PyTree) -> tuple[Float[Array, ""], PyTree]:
            variables, kwargs = {**rest, "params": params}, recipe.train_kwargs
            try:
                logits, renewed = call(variables, x, mutable=list(rest), rngs=rngs, **kwargs)
            except NameError as error:
                if "unbound axis name" not in str(error):
                    raise
                raise ValueError(
                    f"the network communicates over an axis of devices, as BatchNorm(axis_name=…) "
                    f"does: leave axis_name out. Each sub-network's statistics, and the global "
                    f"network's, are those of its whole batch. JAX says: {error}"
                ) from error
            logits_seen.add(logits.shape[-1])  # while JAX traces, where shapes are known first
            return recipe.loss(logits, labels).mean(), renewed

        (loss, renewed), gradient = jax.value_and_grad(cost, has_aux=True)(params)
        change, opt_state = recipe.optimizer.update(gradient, state.opt_state, params)
        variables: PyTree = {**renewed, "params": optax.apply_updates(params, change)}
        if isinstance(state.variables, Stacked):
            variables = Stacked(variables, state.variables.layout)
        averaged = None
        if state.averaged is not None:
            mix = functools.partial(_mix, recipe.average)
            averaged = jax.tree.map(mix, state.averaged, variables)
        return TrainState(state.step + 1, state.key, variables, opt_state, averaged), loss

    def epoch(state: TrainState, data: Data, order: Array) -> tuple[TrainState, Array]:
        return jax.lax.scan(lambda s, _: step(s, data, order), state, length=len(order))

    def forward(variables: PyTree, batch: Data) -> Float[Array, "batch classes"]:
        x = view(recipe.normalise(batch.images), batch.members)
        return call(_collections(variables), x, **recipe.eval_kwargs)

    def classes() -> int | None:
        return max(logits_seen, default=None) if of_classes(recipe) else None

    return Learner(init, shuffle, step, epoch, forward, classes)


def _widest(x: Array) -> Array:
    """Copy x, half precision as float32: small changes to an average would be rounded away."""
    half = x.dtype in (jnp.bfloat16, jnp.float16)
    return x.astype(jnp.float32) if half else jnp.copy(x)


def _mix(decay: float, old: Array, new: Array) -> Array:
    """Return the average with a new value in it; for counters and keys the new value."""
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        return new
    return old + (1 - decay) * (new.astype(old.dtype) - old)


def _stream(key: Key[Array, ""], purpose: int, count: int | Int[Array, ""]) -> Key[Array, ""]:
    """Return the key for one purpose at one step or epoch."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), count)


def _collections(variables: PyTree) -> Any:
    """Return the Flax collections: the tree of a `Stacked`, or the variables themselves."""
    return variables.tree if isinstance(variables, Stacked) else variables
