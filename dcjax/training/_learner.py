"""How one network learns: pure functions, the same for every phase."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from dcjax._compose.stacked import Stacked
from dcjax.training._data import Data
from dcjax.training._images import Standardise
from dcjax.training._recipe import Recipe, steps_per_epoch
from dcjax.training._state import TrainState

PyTree = Any

_ORDER, _AUGMENT, _NETWORK = range(3)  # what random numbers are for


class Learner(NamedTuple):
    """One network's functions, of which a phase is made; `Phase` says what they are."""

    init: Callable[[PyTree, Key[Array, ""]], TrainState]
    shuffle: Callable[[TrainState, Data], Int[Array, "steps batch"]]
    step: Callable[[TrainState, Data, Int[Array, "steps batch"]], tuple[TrainState, Array]]
    epoch: Callable[[TrainState, Data, Int[Array, "steps batch"]], tuple[TrainState, Array]]
    forward: Callable[[PyTree, Data], Float[Array, "batch classes"]]


def learner(
    network: nn.Module,
    recipe: Recipe,
    view: Callable[[Array, Array | None], Array],
    shares: int = 1,
) -> Learner:
    """The functions of a network that sees `view(x, member)` of a normalised batch x.

    With `shares` above 1 it draws from one share of the examples, those of the numbers n with
    n mod shares = member; an epoch goes through it as often as fills its steps.
    """
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
        if shares == 1:
            order = jax.random.permutation(key, examples)
        else:
            assert data.members is not None
            own = examples // shares
            if not own:
                raise ValueError(f"expected an example for each of {shares} shares, got {examples}")
            keys = jax.random.split(key, -(-steps * recipe.batch_size // own))
            passes = jax.vmap(lambda key: jax.random.permutation(key, own))(keys)
            order = passes.reshape(-1) * shares + data.members
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
    """No images that are scaled already where the recipe scales; an `augment` may make floats."""
    images = data.images
    if isinstance(recipe.normalise, Standardise) and not jnp.issubdtype(images.dtype, jnp.integer):
        raise ValueError(
            f"dcjax.training.standardise, the recipe's normalise, is for images of whole numbers "
            f"from 0 to 255, got {images.dtype}{images.shape}; take Recipe(normalise=…) for them, "
            "such as lambda x: x where they are scaled"
        )


@contextlib.contextmanager
def _named(name: str, given: Mapping[str, Any]) -> Iterator[None]:
    """A note on what the network's call was given, where it takes no such argument."""
    try:
        yield
    except TypeError as error:
        if given and "argument" in str(error):
            error.add_note(
                f"the recipe's {name}={dict(given)} are given to network.apply; "
                f"Recipe({name}={{}}) gives nothing"
            )
        raise


def _update(
    network: nn.Module, recipe: Recipe, state: TrainState, x: Array, labels: Array
) -> tuple[TrainState, Float[Array, ""]]:
    """One step of the optimiser on the mean loss of a batch; other collections are renewed too."""
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
    """The average with new variables in it; whole numbers, such as counts, are the newest."""
    if averaged is None:
        return None

    def at(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        return old + (1 - decay) * (new.astype(old.dtype) - old)

    return jax.tree.map(at, averaged, variables)


def _widest(x: Array) -> Array:
    """A copy; of half precision, where an average would not move, in single precision."""
    half = x.dtype in (jnp.bfloat16, jnp.float16)
    return x.astype(jnp.float32) if half else jnp.copy(x)


def _stream(key: Key[Array, ""], purpose: int, count: Int[Array, ""]) -> Key[Array, ""]:
    """A key for one purpose at one step or epoch: each pair has its own."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), count)


def _collections(variables: PyTree) -> Any:
    """The Flax collections: what a `Stacked` holds, or the variables themselves."""
    return variables.tree if isinstance(variables, Stacked) else variables


def _like(old: PyTree, collections: dict[str, PyTree]) -> PyTree:
    return Stacked(collections, old.layout) if isinstance(old, Stacked) else collections
