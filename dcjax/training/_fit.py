"""The training loop, one for all phases, and the evaluation."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from dcjax._checks import shown, whole_number
from dcjax.training._data import Data
from dcjax.training._devices import physical_devices
from dcjax.training._recipe import steps_per_epoch
from dcjax.training._state import TrainState, steps_done
from dcjax.training._trainer import Phase, compile

# Steps given to the devices ahead of their completion. Two keep them busy; on the CPU, where memory
# for a step is taken when it is given, JAX would let 32 of them pile up.
AHEAD = 2


class Epoch(NamedTuple):
    """The record of one epoch, or of a part of it.

    * `epoch`: its number, from 1.
    * `step`: the steps done in all.
    * `seconds`: wall-clock of training since `fit` began, without evaluation and compilation.
    * `device_seconds`: the same times the physical devices.
    * `losses`: the training loss at each of its steps, (steps,) or (steps, K).
    """

    epoch: int
    step: int
    seconds: float
    device_seconds: float
    losses: Float[np.ndarray, "steps *K"]


class Fit(NamedTuple):
    """What `fit` returns: the last state, the records, the seconds of compilation."""

    state: TrainState
    history: list[Epoch]
    compile_seconds: float


def fit(
    phase: Phase,
    state: TrainState,
    train: Data,
    epochs: int,
    *,
    every: int | None = None,
    on_epoch: Callable[[Epoch, TrainState], Any] | None = None,
    on_step: Callable[[int, TrainState], Any] | None = None,
) -> Fit:
    """Trains until `epochs` epochs are done.

    A state that has been trained before goes on where it is, in the middle of an epoch if need be:
    the steps it has done count. An epoch takes whole batches only; the permutation of another epoch
    leaves other examples out.

    Args:
      phase: from `side_by_side` or `data_parallel`; compiled here if `compile` has not done it.
      state: from `phase.start`, or from `fit`. It is consumed: its memory goes to the next state.
      train: the training split, from `phase.place`.
      epochs: the epochs to be done in all, those that the state has behind it among them.
      every: a record wherever this divides the steps done in all, beside those where epochs end.
        With it single steps are taken even where the phase has `epoch`.
      on_epoch: called with each record and the state, outside the measured time: after each epoch,
        and within it where `every` says so. The state is valid only during the call.
      on_step: called with the number of steps done and the state after each call has been given to
        the devices: a step's, or a whole epoch's where the phase has `epoch`. It must not wait for
        them, and the state is valid only during the call.

    Returns:
      The last state, the history, and the seconds spent compiling.

    Raises:
      ValueError: if there are fewer training examples than a batch has, `epochs` is no whole number
        from 0 on, or `every` none from 1 on.

    >>> import dcjax, flax.linen as nn, numpy as np, optax
    >>> from dcjax import training
    >>> network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> recipe = training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    >>> phase = training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    >>> train = phase.place(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int))
    >>> variables = network.init(jax.random.key(0), np.zeros((1, 4, 4, 3)))
    >>> state = phase.start(variables, jax.random.key(1))
    >>> len(training.fit(phase, state, train, epochs=2).history)
    2
    """
    steps = steps_per_epoch(len(train.labels), phase.batch_size)
    epochs = _count("epochs", epochs, 0)
    if every is not None:
        every = _count("every", every, 1)
    phase, compile_seconds = compile(phase, state, train, every=every)
    done = steps_done(state)
    history: list[Epoch] = []
    seconds = 0.0
    for span in _spans(done, epochs * steps, steps, every):
        started = time.perf_counter()
        whole = phase.epoch is not None and len(span) == steps
        run = _whole_epoch if whole else _single_steps
        state, losses = run(phase, state, train, span, on_step)
        seconds += time.perf_counter() - started
        device_seconds = seconds * physical_devices(phase.devices)
        losses = losses.reshape(len(span), *phase.lead)
        epoch = span.start // steps + 1
        history.append(Epoch(epoch, span.stop, seconds, device_seconds, losses))
        if on_epoch is not None:
            on_epoch(history[-1], state)
    return Fit(state, history, compile_seconds)


def _count(name: str, given: Any, least: int) -> int:
    count = whole_number(given)
    if count is None or count < least:
        raise ValueError(f"{name} is a whole number of at least {least}, got {shown(given)}")
    return count


def _spans(done: int, last: int, steps: int, every: int | None) -> Iterator[range]:
    """The steps from `done` to `last`, cut where epochs end and, if so, at multiples of `every`.

    >>> [*_spans(0, 8, 4, None)], [*_spans(2, 8, 4, 3)]
    ([range(0, 4), range(4, 8)], [range(2, 3), range(3, 4), range(4, 6), range(6, 8)])
    """
    while done < last:
        ends = [size * (done // size + 1) for size in (steps, every) if size is not None]
        yield range(done, min(ends))
        done = min(ends)


def _whole_epoch(
    phase: Phase,
    state: TrainState,
    train: Data,
    steps: range,
    on_step: Callable[[int, TrainState], Any] | None,
) -> tuple[TrainState, np.ndarray]:
    """Runs the steps in one call."""
    state, losses = phase.epoch(state, train, phase.shuffle(state, train))
    if on_step is not None:
        on_step(steps.stop, state)
    return jax.block_until_ready(state), np.moveaxis(jax.device_get(losses), -1, 0)


def _single_steps(
    phase: Phase,
    state: TrainState,
    train: Data,
    steps: range,
    on_step: Callable[[int, TrainState], Any] | None,
) -> tuple[TrainState, np.ndarray]:
    """Runs the steps; nothing goes between host and devices before the last has been given."""
    order = phase.shuffle(state, train)
    losses = []
    for step in steps:
        state, loss = phase.step(state, train, order)
        losses.append(loss)
        jax.block_until_ready(losses[-1 - AHEAD : -AHEAD])
        if on_step is not None:
            on_step(step + 1, state)
    return jax.block_until_ready(state), np.stack(jax.device_get(losses))


def evaluate(phase: Phase, state: TrainState, data: Data) -> Float[np.ndarray, "*K N C"]:
    """The logits of a whole split, in evaluation mode and in the order of the split.

    Args:
      phase: from `side_by_side` or `data_parallel`.
      state: a state of the phase; it is not consumed.
      data: a split, from `phase.place`.

    Returns:
      Logits of all N examples, (N, C), or (K, N, C) side by side.

    >>> import dcjax, flax.linen as nn, numpy as np, optax
    >>> from dcjax import training
    >>> network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> recipe = training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    >>> phase = training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    >>> train = phase.place(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int))
    >>> variables = network.init(jax.random.key(0), np.zeros((1, 4, 4, 3)))
    >>> state = phase.start(variables, jax.random.key(1))
    >>> training.evaluate(phase, state, train).shape
    (8, 3)
    """
    examples = len(data.labels)
    logits = []
    for index in range(math.ceil(examples / phase.batch_size)):
        logits.append(phase.forward(state.result, phase.batch(data, index)))
        jax.block_until_ready(logits[-1 - AHEAD : -AHEAD])
    whole = np.concatenate(jax.device_get(logits), axis=-2)[..., :examples, :]
    return whole.reshape(*phase.lead, *whole.shape[-2:])
