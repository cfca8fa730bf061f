"""The trainer of one network, or of K side by side: a few pure functions that `fit` runs."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from dcjax._checks import check_key, shown
from dcjax._compose.stacked import Stacked
from dcjax.training._data import Data
from dcjax.training._devices import Device, OutsideMesh
from dcjax.training._processes import meet
from dcjax.training._recipe import steps_per_epoch
from dcjax.training._state import TrainState, steps_done


class Trainer(NamedTuple):
    """Pure functions for training, made by `side_by_side`, `data_parallel` or `rarely_averaged`.

    `fit` and `evaluate` call them. On the host a pytree is plain: its leaves have the leading axes
    `lead`. On the devices it has a form that only the trainer knows.

    * `place(images, labels)`: put a split, training or test, on the devices as `Data`.
    * `start(variables, key, opt_state=None)`: make the state before the first step; copies. The
      optimiser goes on from `opt_state`, of the form of `variables`; None starts it anew.
    * `finish(state)`: return the plain variables, on one device; copies.
    * `to_devices(tree)`, `to_host(tree)`: convert any plain pytree to the devices' form and back;
      both copy, so the result outlives the next step. A checkpoint is `to_host(state)`.
    * `shuffle(state, data)`: draw the order of the examples for the state's epoch.
    * `step(state, data, order)`: take one step; return the new state and the loss. It donates the
      old state.
    * `epoch(state, data, order)`: take all steps of an epoch in one call; return the new state and
      the losses, steps last. None where single steps are faster.
    * `batch(data, index)`: take batch number `index` of a split, in order; the last one is filled.
    * `forward(variables, batch)`: compute logits in evaluation mode; `variables` on the devices.
    * `batch_size`; `lead`: `()`, or `(K,)` side by side; `devices`: the devices in use.
    * `classes()`: the number of classes, known once `step` or `epoch` is compiled; None before, and
      with a loss of your own.
    * `average(step, state)`: called by `fit` after each step, with the steps done; return the state
      to go on with. None where nothing is to be averaged.
    * `every`: the steps between two averages. Within them the states of the copies, and so the
      checkpoints of several processes, need not be of the same step.
    """

    place: Callable[[Any, Any], Data]
    start: Callable[..., TrainState]
    finish: Callable[[TrainState], PyTree]
    to_devices: Callable[[PyTree], PyTree]
    to_host: Callable[[PyTree], PyTree]
    shuffle: Any  # (TrainState, Data) -> order; these four are jax.stages.Wrapped or Compiled
    step: Any  # (TrainState, Data, order) -> (TrainState, loss)
    epoch: Any  # (TrainState, Data, order) -> (TrainState, losses), or None
    forward: Any  # (variables, Data) -> logits
    batch: Callable[[Data, int], Data]
    batch_size: int
    lead: tuple[int, ...]
    devices: tuple[Device, ...]
    classes: Callable[[], int | None]
    average: Callable[[int, TrainState], TrainState] | None = None
    every: int = 1


def guarded(trainer: Trainer) -> Trainer:
    """Let `finish` check its state, and all functions run outside a mesh that a caller has set."""

    def finish(state: TrainState) -> PyTree:
        check_state(state, trainer.lead, "finish takes the state alone")
        return finish_checked(state)

    finish_checked, trainer = trainer.finish, trainer._replace(finish=finish)
    functions = {name: part for name, part in trainer._asdict().items() if callable(part)}
    return trainer._replace(**{name: OutsideMesh(part) for name, part in functions.items()})


def compile(
    trainer: Trainer,
    state: TrainState,
    train: Data,
    test: Data | None = None,
    *,
    every: int | None = None,
) -> tuple[Trainer, float]:
    """Compile a trainer ahead of time, so that measured times hold no compilation.

    Args:
      trainer: from `side_by_side` or `data_parallel`; functions already compiled are kept.
      state: a state of the trainer; only its shapes and its step are read.
      train: the training split.
      test: a split to evaluate; without it `forward` is left as it is.
      every: as in `fit`; where it cuts epochs, the trainer loses `epoch` and takes single steps.

    Returns:
      The trainer with compiled functions, for data of these sizes only, and the seconds it took.

    Raises:
      ValueError: a label is not one of the network's classes, or the state or the data are those of
        another trainer.
      TypeError: an argument has another type.

    >>> import dcjax, flax.linen as nn, numpy as np, optax
    >>> network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> recipe = dcjax.training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    >>> trainer = dcjax.training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    >>> train = trainer.place(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int))
    >>> state = trainer.start(network.init(jax.random.key(0), train.images), jax.random.key(1))
    >>> trainer, seconds = dcjax.training.compile(trainer, state, train)
    >>> seconds > 0
    True
    """
    check_run(trainer, state, train)
    started = time.perf_counter()
    steps = steps_per_epoch(len(train.labels), trainer.batch_size)
    if every is not None and every % steps:  # a record falls within an epoch
        trainer = trainer._replace(epoch=None)
    trainer = trainer._replace(shuffle=_compiled(trainer.shuffle, state, train))
    args = state, train, trainer.shuffle(state, train)
    if trainer.epoch is not None:
        trainer = trainer._replace(epoch=_compiled(trainer.epoch, *args))
    # A state in the middle of an epoch finishes it in single steps.
    if trainer.epoch is None or steps_done(state) % steps:
        trainer = trainer._replace(step=_compiled(trainer.step, *args))
    _check_labels(train.labels, trainer.classes())
    if test is not None:
        batch = trainer.batch(test, 0)
        trainer = trainer._replace(forward=_compiled(trainer.forward, state.result, batch))
    meet(trainer.devices)
    if trainer.average is not None:  # of a copy, because it donates the state
        trainer.average(0, trainer.to_devices(trainer.to_host(state)))
    return trainer, time.perf_counter() - started


def check_start(variables: Any, key: Any) -> None:
    """Refuse what a trainer of the global network cannot start from."""
    if isinstance(variables, Stacked):
        raise ValueError(
            f"expected the global network's variables, got those of {len(variables)} stacked "
            "sub-networks; compose them first: dcjax.compose(stacked)"
        )
    check_key(key, "the order of arguments is start(variables, key)")


def check_run(trainer: Any, state: Any, data: Any) -> None:
    """Refuse a state or data that is not of this trainer."""
    order = "the order of arguments is trainer, state, data"
    _check_kind(trainer, Trainer, "side_by_side or data_parallel", order)
    check_state(state, trainer.lead, order)
    _check_kind(data, Data, "trainer.place(images, labels)", order)
    if (data.members is None) == bool(trainer.lead):
        raise ValueError(
            f"expected data of this trainer, of {_networks(trainer.lead)}, got data of another: "
            "place them with its trainer.place(images, labels)"
        )


def check_state(state: Any, lead: tuple[int, ...], order: str) -> None:
    """Refuse a state that is not of the trainer with this `lead`, in the devices' form."""
    _check_kind(state, TrainState, "trainer.start or fit(…).state", order)
    if isinstance(state.step, jax.Array) and state.step.is_deleted():
        raise ValueError(
            "the state was donated to an earlier fit or step, which took its memory: go on with "
            "fit(…).state, or start again by trainer.start(variables, key)"
        )
    ranks = jnp.ndim(state.step), 2 if lead else 0
    if ranks[0] != ranks[1] or math.prod(lead) != jnp.size(state.step):
        raise ValueError(
            f"expected a state of this trainer, of {_networks(lead)}, got one whose step "
            f"has shape {jnp.shape(state.step)}: make one by its trainer.start(variables, key), or "
            "trainer.to_devices(state) of one on the host"
        )


def _check_kind(value: Any, kind: type, source: str, order: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"expected a {kind.__name__}, from {source}, got {shown(value)}; {order}")


def _networks(lead: tuple[int, ...]) -> str:
    return f"{lead[0]} sub-networks" if lead else "one network"


def _check_labels(labels: Array, classes: int | None) -> None:
    """Refuse labels beyond the network's classes, which would make the loss NaN."""
    last = int(jax.device_get(labels).max())
    if classes is not None and last >= classes:
        raise ValueError(
            f"the network has {classes} classes, so labels go from 0 to {classes - 1}, got {last}; "
            "subtract 1 from labels that begin with 1, or give the network more classes"
        )


def _compiled(function: Any, *args: Any) -> Any:
    done = isinstance(function, jax.stages.Compiled)
    return function if done else function.lower(*args).compile()
