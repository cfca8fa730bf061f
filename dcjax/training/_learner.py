"""How one network learns: pure functions that both trainers are made of."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dcjax._compose.stacked import Stacked
from dcjax.training._data import Data
from dcjax.training._images import Standardise
from dcjax.training._recipe import Recipe, steps_per_epoch
from dcjax.training._state import TrainState

# Each use of random numbers folds a number into the key, so that no two share a stream.
_ORDER, _AUGMENT, _NETWORK = range(3)


class Learner(NamedTuple):
    """The functions of one network; `Trainer` documents them."""

    init: Callable[[PyTree, Key[Array, ""]], TrainState]
    shuffle: Callable[[TrainState, Data], Int[Array, "steps batch"]]
    step: Callable[[TrainState, Data, Int[Array, "steps batch"]], tuple[TrainState, Array]]
    epoch: Callable[[TrainState, Data, Int[Array, "steps batch"]], tuple[TrainState, Array]]
    forward: Callable[[PyTree, Data], Float[Array, "batch classes"]]


def learner(
    network: nn.Module,
    recipe: Recipe,
    view: Callable[[Array, Array | None], Array],
) -> Learner:
    """Make the functions of a network that sees `view(x, member)` of a normalised batch x."""
    if not 0 <= recipe.average < 1:
        raise ValueError(
            f"expected a recipe with 0 <= average < 1, got {recipe.average}; 0.99 averages about "
            "the last 100 steps"
        )

    def init(variables: PyTree, key: Key[Array, ""]) -> TrainState:
        if "params" not in _collections(variables):
            raise ValueError(
                "expected all of a network's variables, as from network.init: {'params': …, …}, "
                f"got {sorted(_collections(variables))}"
            )
        opt_state = recipe.optimizer.init(_collections(variables)["params"])
        averaged = jax.tree.map(_widest, variables) if recipe.average else None
        return TrainState(jnp.int32(0), key, variables, opt_state, averaged)

    def shuffle(state: TrainState, data: Data) -> Int[Array, "steps batch"]:
        examples = len(data.labels)
        steps = steps_per_epoch(examples, recipe.batch_size)
        key = _stream(state.key, _ORDER, state.step // steps)
        order = jax.random.permutation(key, examples)
        return order[: steps * recipe.batch_size].reshape(steps, recipe.batch_size)

    def step(state: TrainState, data: Data, order: Array) -> tuple[TrainState, Array]:
        _check_pixels(recipe, data)
        chosen = order[state.step % len(order)]
        images = recipe.augment(_stream(state.key, _AUGMENT, state.step), data.images[chosen])
        x = view(recipe.normalise(images), data.members)
        return _update(network, recipe, state, x, data.labels[chosen])

    def epoch(state: TrainState, data: Data, order: Array) -> tuple[TrainState, Array]:
        return jax.lax.scan(lambda s, _: step(s, data, order), state, length=len(order))

    def forward(variables: PyTree, batch: Data) -> Float[Array, "batch classes"]:
        _check_pixels(recipe, batch)
        x = view(recipe.normalise(batch.images), batch.members)
        with _named("eval_kwargs", recipe.eval_kwargs):
            logits: Any = network.apply(_collections(variables), x, **recipe.eval_kwargs)
        return logits

    return Learner(init, shuffle, step, epoch, forward)


def _check_pixels(recipe: Recipe, data: Data) -> None:
    """Refuse images that are scaled already, if the recipe scales; an `augment` may make floats."""
    images = data.images
    if isinstance(recipe.normalise, Standardise) and not jnp.issubdtype(images.dtype, jnp.integer):
        raise ValueError(
            "the recipe's normalise, dcjax.training.standardise, expects integer images from 0 to "
            f"255, got {images.dtype}{images.shape}; for scaled images give "
            "Recipe(normalise=lambda x: x)"
        )


@contextlib.contextmanager
def _named(name: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Add a note that names the recipe's arguments, if the network's call does not take them."""
    try:
        yield
    except TypeError as error:
        if given and "argument" in str(error):
            error.add_note(
                f"network.apply is called with the recipe's {name}={dict(given)}; "
                f"Recipe({name}={{}}) passes nothing"
            )
        raise


def _update(
    network: nn.Module, recipe: Recipe, state: TrainState, x: Array, labels: Array
) -> tuple[TrainState, Float[Array, ""]]:
    """Take one step of the optimiser on the mean loss of a batch; renew the other collections."""
    rest = dict(_collections(state.variables))
    params = rest.pop("params")
    key = _stream(state.key, _NETWORK, state.step)
    rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(recipe.rngs)}

    def cost(params: PyTree) -> tuple[Array, PyTree]:
        variables, kwargs = {**rest, "params": params}, recipe.train_kwargs
        with _named("train_kwargs", kwargs):
            logits, renewed = network.apply(variables, x, mutable=list(rest), rngs=rngs, **kwargs)
        return recipe.loss(logits, labels).mean(), renewed

    (loss, renewed), gradient = jax.value_and_grad(cost, has_aux=True)(params)
    change, opt_state = recipe.optimizer.update(gradient, state.opt_state, params)
    variables = {**renewed, "params": optax.apply_updates(params, change)}
    variables = _like(state.variables, variables)
    averaged = _averaged(recipe.average, state.averaged, variables)
    return TrainState(state.step + 1, state.key, variables, opt_state, averaged), loss


def _averaged(decay: float, averaged: PyTree, variables: PyTree) -> PyTree:
    """Return the average with the new variables in it; for integers, such as counts, the newest."""
    if averaged is None:
        return None

    def at(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        return old + (1 - decay) * (new.astype(old.dtype) - old)

    return jax.tree.map(at, averaged, variables)


def _widest(x: Array) -> Array:
    """Copy x, half precision as float32: small changes to an average would be rounded away."""
    half = x.dtype in (jnp.bfloat16, jnp.float16)
    return x.astype(jnp.float32) if half else jnp.copy(x)


def _stream(key: Key[Array, ""], purpose: int, count: Int[Array, ""]) -> Key[Array, ""]:
    """Return the key for one purpose at one step or epoch."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), count)


def _collections(variables: PyTree) -> Any:
    """Return the Flax collections: the tree of a `Stacked`, or the variables themselves."""
    return variables.tree if isinstance(variables, Stacked) else variables


def _like(old: PyTree, collections: dict[str, PyTree]) -> PyTree:
    return Stacked(collections, old.layout) if isinstance(old, Stacked) else collections
