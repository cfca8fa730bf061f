"""The training loop and the evaluation, the same for both trainers."""

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
from dcjax.training._trainer import Trainer, compile

# Steps dispatched ahead of their completion. Two keep the devices busy. Without a limit JAX lets 32
# pile up on the CPU, and each takes its memory when it is dispatched.
AHEAD = 2


class Epoch(NamedTuple):
    """The record of one epoch, or of a part of it.

    * `epoch`: its number, from 1.
    * `step`: the steps done since the state was started.
    * `seconds`: wall-clock seconds of training since `fit` began, without evaluation and
      compilation.
    * `device_seconds`: `seconds` times the physical devices.
    * `losses`: the training loss of each step, (steps,) or (steps, K).
    """

    epoch: int
    step: int
    seconds: float
    device_seconds: float
    losses: Float[np.ndarray, "steps *K"]


class Fit(NamedTuple):
    """The last state, the records, and the seconds of compilation."""

    state: TrainState
    history: list[Epoch]
    compile_seconds: float


def fit(
    trainer: Trainer,
    state: TrainState,
    train: Data,
    epochs: int,
    *,
    every: int | None = None,
    on_epoch: Callable[[Epoch, TrainState], Any] | None = None,
    on_step: Callable[[int, TrainState], Any] | None = None,
) -> Fit:
    """Train until `epochs` epochs are done.

    The steps that the state has done count: training resumes where it stopped, even within an
    epoch. An epoch takes whole batches only; each epoch's permutation leaves other examples out.

    Args:
      trainer: from `side_by_side` or `data_parallel`; compiled here unless `compile` has done it.
      state: from `trainer.start` or `fit`. It is donated: the next state takes its memory.
      train: the training split, from `trainer.place`.
      epochs: the epochs to be done since the state was started, ≥ 0.
      every: steps between additional records, ≥ 1; records at the ends of epochs stay. It makes
        the trainer take single steps.
      on_epoch: called with each record and the state, outside the measured time. The state is valid
        only during the call.
      on_step: called with the number of steps done and the state after each step, or each epoch
        where the trainer has `epoch`, has been dispatched. It must not wait for the devices; the
        state is valid only during the call.

    Returns:
      The last state, the history, and the seconds spent compiling.

    Raises:
      ValueError: there are fewer examples than a batch needs, or `epochs` or `every` is out of its
        range or not an integer.

    >>> import dcjax, flax.linen as nn, numpy as np, optax
    >>> from dcjax import training
    >>> network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> recipe = training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    >>> trainer = training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    >>> train = trainer.place(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int))
    >>> variables = network.init(jax.random.key(0), np.zeros((1, 4, 4, 3)))
    >>> state = trainer.start(variables, jax.random.key(1))
    >>> len(training.fit(trainer, state, train, epochs=2).history)
    2
    """
    steps = steps_per_epoch(len(train.labels), trainer.batch_size)
    epochs = _count("epochs", epochs, 0)
    if every is not None:
        every = _count("every", every, 1)
    trainer, compile_seconds = compile(trainer, state, train, every=every)
    done = steps_done(state)
    history: list[Epoch] = []
    seconds = 0.0
    for span in _spans(done, epochs * steps, steps, every):
        started = time.perf_counter()
        whole = trainer.epoch is not None and len(span) == steps
        run = _whole_epoch if whole else _single_steps
        state, losses = run(trainer, state, train, span, on_step)
        seconds += time.perf_counter() - started
        device_seconds = seconds * physical_devices(trainer.devices)
        losses = losses.reshape(len(span), *trainer.lead)
        epoch = span.start // steps + 1
        history.append(Epoch(epoch, span.stop, seconds, device_seconds, losses))
        if on_epoch is not None:
            on_epoch(history[-1], state)
    return Fit(state, history, compile_seconds)


def _count(name: str, given: Any, least: int) -> int:
    count = whole_number(given)
    if count is None or count < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {shown(given)}")
    return count


def _spans(done: int, last: int, steps: int, every: int | None) -> Iterator[range]:
    """Cut the steps from `done` to `last` at the ends of epochs and at multiples of `every`.

    >>> [*_spans(0, 8, 4, None)], [*_spans(2, 8, 4, 3)]
    ([range(0, 4), range(4, 8)], [range(2, 3), range(3, 4), range(4, 6), range(6, 8)])
    """
    while done < last:
        ends = [size * (done // size + 1) for size in (steps, every) if size is not None]
        yield range(done, min(ends))
        done = min(ends)


def _whole_epoch(
    trainer: Trainer,
    state: TrainState,
    train: Data,
    steps: range,
    on_step: Callable[[int, TrainState], Any] | None,
) -> tuple[TrainState, np.ndarray]:
    """Run the steps in one call."""
    state, losses = trainer.epoch(state, train, trainer.shuffle(state, train))
    if on_step is not None:
        on_step(steps.stop, state)
    return jax.block_until_ready(state), np.moveaxis(jax.device_get(losses), -1, 0)


def _single_steps(
    trainer: Trainer,
    state: TrainState,
    train: Data,
    steps: range,
    on_step: Callable[[int, TrainState], Any] | None,
) -> tuple[TrainState, np.ndarray]:
    """Run the steps; nothing moves between host and devices until the last is dispatched."""
    order = trainer.shuffle(state, train)
    losses = []
    for step in steps:
        state, loss = trainer.step(state, train, order)
        losses.append(loss)
        jax.block_until_ready(losses[-1 - AHEAD : -AHEAD])
        if on_step is not None:
            on_step(step + 1, state)
    return jax.block_until_ready(state), np.stack(jax.device_get(losses))


def evaluate(trainer: Trainer, state: TrainState, data: Data) -> Float[np.ndarray, "*K N C"]:
    """Compute the logits of a whole split, in evaluation mode and in the split's order.

    Args:
      trainer: from `side_by_side` or `data_parallel`.
      state: a state of the trainer; it is not donated.
      data: a split, from `trainer.place`.

    Returns:
      Logits of all N examples, (N, C), or (K, N, C) side by side.

    >>> import dcjax, flax.linen as nn, numpy as np, optax
    >>> from dcjax import training
    >>> network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> recipe = training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    >>> trainer = training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    >>> train = trainer.place(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int))
    >>> variables = network.init(jax.random.key(0), np.zeros((1, 4, 4, 3)))
    >>> state = trainer.start(variables, jax.random.key(1))
    >>> training.evaluate(trainer, state, train).shape
    (8, 3)
    """
    examples = len(data.labels)
    logits = []
    for index in range(math.ceil(examples / trainer.batch_size)):
        logits.append(trainer.forward(state.result, trainer.batch(data, index)))
        jax.block_until_ready(logits[-1 - AHEAD : -AHEAD])
    whole = np.concatenate(jax.device_get(logits), axis=-2)[..., :examples, :]
    return whole.reshape(*trainer.lead, *whole.shape[-2:])
