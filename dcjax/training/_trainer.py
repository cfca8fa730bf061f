"""A phase of training as a few functions, whichever way its work is spread over the devices."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key

from dcjax.training._data import Data
from dcjax.training._devices import Device
from dcjax.training._recipe import steps_per_epoch
from dcjax.training._state import TrainState, steps_done

PyTree = Any


class Phase(NamedTuple):
    """How a phase trains: pure functions, made by `side_by_side` or `data_parallel`.

    `fit` and `evaluate` run them. Outside, pytrees are plain: every leaf has the leading axes
    `lead`. On the devices they have a form of the phase's own.

    * `place(images, labels)`: a split, training or test, to `Data` on the devices, once.
    * `start(variables, key)`: the state before the first step; copies.
    * `finish(state)`: the plain variables, on one device; copies.
    * `spread(tree)`, `gather(tree)`: any plain pytree to the devices' form, and back; copies, so
      that a gathered state outlives the next step. A checkpoint is `gather(state)`.
    * `shuffle(state, data)`: the order of the epoch that the state is in.
    * `step(state, data, order)`: the state after one step, and the loss; consumes the old state.
    * `epoch(state, data, order)`: a whole epoch in one call, and the losses with its steps in the
      last axis; None where single steps are faster.
    * `batch(data, index)`: batch number `index` of a split, in order; a last one is filled up.
    * `forward(variables, batch)`: a batch's logits in evaluation mode; `variables` on the devices.
    * `batch_size`; `lead`: `()`, or `(K,)` side by side; `devices`: those that are used.
    """

    place: Callable[[Any, Any], Data]
    start: Callable[[PyTree, Key[Array, ""]], TrainState]
    finish: Callable[[TrainState], PyTree]
    spread: Callable[[PyTree], PyTree]
    gather: Callable[[PyTree], PyTree]
    shuffle: Any  # (TrainState, Data) -> order; these are jax.stages.Wrapped or Compiled
    step: Any  # (TrainState, Data, order) -> (TrainState, loss)
    epoch: Any  # (TrainState, Data, order) -> (TrainState, losses), or None
    forward: Any  # (variables, Data) -> logits
    batch: Callable[[Data, int], Data]
    batch_size: int
    lead: tuple[int, ...]
    devices: tuple[Device, ...]


def compile(
    phase: Phase,
    state: TrainState,
    train: Data,
    test: Data | None = None,
    *,
    every: int | None = None,
) -> tuple[Phase, float]:
    """Compiles a phase ahead of time, so that no later measurement has compilation in it.

    Args:
      phase: from `side_by_side` or `data_parallel`; what is compiled already stays as it is.
      state: a state of the phase; it is only looked at.
      train: the training split.
      test: a split to be evaluated; without it, evaluation stays as it is.
      every: `fit`'s; where it cuts epochs, whole ones in one call are given up for single steps.

    Returns:
      The phase with compiled functions, for data of these sizes only, and the seconds it took.

    >>> import dcjax, flax.linen as nn, numpy as np, optax
    >>> from dcjax import training
    >>> network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> recipe = training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    >>> phase = training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    >>> train = phase.place(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int))
    >>> variables = network.init(jax.random.key(0), np.zeros((1, 4, 4, 3)))
    >>> state = phase.start(variables, jax.random.key(1))
    >>> phase, seconds = training.compile(phase, state, train)
    >>> seconds > 0
    True
    """
    started = time.perf_counter()
    if not _is_compiled(phase.shuffle):
        phase = phase._replace(shuffle=phase.shuffle.lower(state, train).compile())
    steps = steps_per_epoch(len(train.labels), phase.batch_size)
    if every is not None and every % steps:
        phase = phase._replace(epoch=None)
    whole = phase.epoch is not None
    names = {"step": not whole or steps_done(state) % steps > 0, "epoch": whole}
    for name, needed in names.items():
        function = getattr(phase, name)
        if needed and not _is_compiled(function):
            order = phase.shuffle(state, train)
            phase = phase._replace(**{name: function.lower(state, train, order).compile()})
    if test is not None and not _is_compiled(phase.forward):
        forward = phase.forward.lower(state.result, phase.batch(test, 0)).compile()
        phase = phase._replace(forward=forward)
    return phase, time.perf_counter() - started


def _is_compiled(function: Any) -> bool:
    return isinstance(function, jax.stages.Compiled)
