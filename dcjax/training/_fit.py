"""The training loop and the evaluation, the same for both trainers."""

import math
import operator
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from dcjax.training._data import Data
from dcjax.training._devices import physical_devices
from dcjax.training._recipe import steps_per_epoch
from dcjax.training._state import TrainState, steps_done
from dcjax.training._trainer import Trainer, check_run, compile

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
    * `accuracy`, `validation_loss`: on the validation split, of one network or of each of K; None
      without one.
    """

    epoch: int
    step: int
    seconds: float
    device_seconds: float
    losses: Float[np.ndarray, "steps *K"]
    accuracy: Float[np.ndarray, "*K"] | None = None
    validation_loss: Float[np.ndarray, "*K"] | None = None


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
    validation: Data | None = None,
    progress: bool = False,
    on_epoch: Callable[[Epoch, TrainState], Any] | None = None,
    on_step: Callable[[int, TrainState], Any] | None = None,
) -> Fit:
    """Train until `epochs` epochs are done.

    The steps that the state has done count: training resumes where it stopped, even within an
    epoch. An epoch takes whole batches only; each epoch's permutation leaves other examples out.
    A loss that becomes NaN or infinite gives one `RuntimeWarning`; the training goes on.

    Args:
      trainer: from `side_by_side` or `data_parallel`; compiled here unless `compile` has done it.
      state: from `trainer.start` or `fit`. It is donated: the next state takes its memory.
      train: the training split, from `trainer.place`.
      epochs: the epochs to be done since the state was started, ≥ 0.
      every: steps between additional records, ≥ 1; records at the ends of epochs stay. It makes
        the trainer take single steps.
      validation: a split, from `trainer.place`, on which each record gives accuracy and loss,
        outside the measured time.
      progress: print a line for each record, on stderr.
      on_epoch: called with each record and the state, outside the measured time. The state is valid
        only during the call.
      on_step: called with the number of steps done and the state after each step, or each epoch
        where the trainer has `epoch`, has been dispatched. It must not wait for the devices; the
        state is valid only during the call.

    Returns:
      The last state, the history, and the seconds spent compiling.

    Raises:
      ValueError: there are fewer examples than a batch needs, `epochs` or `every` is too small, or
        the state or the data are those of another trainer.
      TypeError: `epochs` or `every` is not an integer, or another argument has another type.

    >>> import dcjax, flax.linen as nn, numpy as np, optax
    >>> network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> recipe = dcjax.training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    >>> trainer = dcjax.training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    >>> train = trainer.place(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int))
    >>> state = trainer.start(network.init(jax.random.key(0), train.images), jax.random.key(1))
    >>> len(dcjax.training.fit(trainer, state, train, epochs=2).history)
    2
    """
    epochs, every = operator.index(epochs), None if every is None else operator.index(every)
    if epochs < 0 or (every is not None and every < 1):
        raise ValueError(f"expected epochs >= 0 and every >= 1, got {epochs} and {every}")
    trainer, compile_seconds = compile(trainer, state, train, every=every)
    steps = steps_per_epoch(len(train.labels), trainer.batch_size)
    history: list[Epoch] = []
    seconds, diverged = 0.0, set[int]()
    for span in _spans(steps_done(state), epochs * steps, steps, every):
        started = time.perf_counter()
        state, losses = _train(trainer, state, train, span, on_step)
        seconds += time.perf_counter() - started
        device_seconds = seconds * physical_devices(trainer.devices)
        epoch = span.start // steps + 1
        scores = () if validation is None else _scores(trainer, state, validation)
        history.append(Epoch(epoch, span.stop, seconds, device_seconds, losses, *scores))
        if progress:
            print(_line(history[-1], span.stop / steps, epochs), file=sys.stderr, flush=True)
        new = _diverged(losses, span.start, but=diverged)
        if new:
            warnings.warn(_divergence(new, train), RuntimeWarning, stacklevel=2)
        diverged |= new.keys()
        if on_epoch is not None:
            on_epoch(history[-1], state)
    return Fit(state, history, compile_seconds)


def _scores(
    trainer: Trainer, state: TrainState, data: Data
) -> tuple[Float[np.ndarray, "*K"], Float[np.ndarray, "*K"]]:
    """Return the accuracy and the mean cross entropy on a split."""
    logits, labels = evaluate(trainer, state, data), jax.device_get(data.labels)
    largest = logits.max(axis=-1, keepdims=True)
    shifted = logits.astype(np.float64) - largest
    true = shifted[..., np.arange(len(labels)), labels]
    losses = np.log(np.exp(shifted).sum(axis=-1)) - true
    right = logits.argmax(axis=-1) == labels
    return np.asarray(right.mean(axis=-1)), np.asarray(losses.mean(axis=-1))


def _line(done: Epoch, epoch: float, epochs: int) -> str:
    """Return a record in one line, for people."""

    parts = [f"epoch {epoch:.4g}/{epochs}", f"training loss {several(done.losses.mean(0), '.3f')}"]
    if done.accuracy is not None and done.validation_loss is not None:
        parts.append(f"validation loss {several(done.validation_loss, '.3f')}")
        parts.append(f"accuracy {several(100 * done.accuracy, '.1f')} %")
    return "  ".join([*parts, f"{done.seconds:.1f} s"])


def several(values: Float[np.ndarray, "*K"] | np.floating, form: str) -> str:
    """Return the numbers of one network, or of K: above four their mean and range.

    >>> several(np.array([0.5, 0.25]), ".2f"), several(np.arange(6.0), ".1f")
    ('0.50 0.25', '2.5 (0.0 to 5.0)')
    """
    if values.size <= 4:
        return " ".join(format(value, form) for value in np.ravel(values))
    mean, low, high = (format(f(values), form) for f in (np.mean, np.min, np.max))
    return f"{mean} ({low} to {high})"


def _spans(done: int, last: int, steps: int, every: int | None) -> Iterator[range]:
    """Cut the steps from `done` to `last` at the ends of epochs and at multiples of `every`.

    >>> [*_spans(0, 8, 4, None)], [*_spans(2, 8, 4, 3)]
    ([range(0, 4), range(4, 8)], [range(2, 3), range(3, 4), range(4, 6), range(6, 8)])
    """
    while done < last:
        ends = [size * (done // size + 1) for size in (steps, every) if size is not None]
        yield range(done, min(ends))
        done = min(ends)


def _train(
    trainer: Trainer,
    state: TrainState,
    train: Data,
    span: range,
    on_step: Callable[[int, TrainState], Any] | None,
) -> tuple[TrainState, Float[np.ndarray, "steps *K"]]:
    """Take the steps of a span; nothing moves between host and devices until the last."""
    order = trainer.shuffle(state, train)
    whole = trainer.epoch is not None and len(span) == order.shape[-2]
    run: Any = trainer.epoch if whole else trainer.step
    stops = [span.stop] if whole else [step + 1 for step in span]
    losses = []
    for stop in stops:
        state, loss = run(state, train, order)
        losses.append(loss)
        if trainer.average is not None:
            state = trainer.average(stop, state)
        jax.block_until_ready(losses[-1 - AHEAD : -AHEAD])
        if on_step is not None:
            on_step(stop, state)
    state, losses = jax.block_until_ready(state), jax.device_get(losses)
    steps_last = losses[0] if whole else np.stack(losses, -1)
    return state, np.moveaxis(steps_last, -1, 0).reshape(len(span), *trainer.lead)


def _diverged(
    losses: Float[np.ndarray, "steps *K"], start: int, *, but: set[int]
) -> dict[int, int]:
    """Return the first step whose loss is not finite, by the network's place; leave out `but`."""
    bad = ~np.isfinite(losses.reshape(len(losses), -1))
    places = [int(place) for place in np.flatnonzero(bad.any(axis=0))]
    return {place: start + int(bad[:, place].argmax()) + 1 for place in places if place not in but}


def _divergence(steps: dict[int, int], train: Data) -> str:
    """Return the warning of losses that ceased to be finite at these steps."""
    numbers = None if train.members is None else np.ravel(jax.device_get(train.members))
    where = [
        f"step {step}" if numbers is None else f"sub-network {numbers[place]} at step {step}"
        for place, step in steps.items()
    ]
    return (
        f"the loss became NaN or infinite: {', '.join(where)}; a lower learning rate or a longer "
        "warm-up may help"
    )


def evaluate(trainer: Trainer, state: TrainState, data: Data) -> Float[np.ndarray, "*K N C"]:
    """Compute the logits of a whole split, in evaluation mode and in the split's order.

    Args:
      trainer: from `side_by_side` or `data_parallel`.
      state: a state of the trainer; it is not donated.
      data: a split, from `trainer.place`.

    Returns:
      Logits of all N examples, (N, C), or (K, N, C) side by side.

    Raises:
      ValueError: the state or the data are those of another trainer.
      TypeError: an argument has another type.

    >>> import dcjax, flax.linen as nn, numpy as np, optax
    >>> network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> recipe = dcjax.training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    >>> trainer = dcjax.training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    >>> train = trainer.place(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int))
    >>> state = trainer.start(network.init(jax.random.key(0), train.images), jax.random.key(1))
    >>> dcjax.training.evaluate(trainer, state, train).shape
    (8, 3)
    """
    check_run(trainer, state, data)
    examples = len(data.labels)
    logits = []
    for index in range(math.ceil(examples / trainer.batch_size)):
        logits.append(trainer.forward(state.result, trainer.batch(data, index)))
        jax.block_until_ready(logits[-1 - AHEAD : -AHEAD])
    whole = np.concatenate(jax.device_get(logits), axis=-2)[..., :examples, :]
    return whole.reshape(*trainer.lead, *whole.shape[-2:])


def predict(
    trainer: Trainer, state: TrainState, images: Shaped[Array | np.ndarray, "N ..."]
) -> Float[np.ndarray, "*K N C"]:
    """Return the probabilities of the classes, the softmax of the logits, for any images.

    Args:
      trainer: from `side_by_side` or `data_parallel`.
      state: a state of the trainer; it is not donated.
      images: as for training, without labels; the trainer's recipe normalises them.

    Returns:
      Probabilities (N, C), or (K, N, C) side by side, in double precision.

    Raises:
      ValueError: the images are empty, or the state is of another trainer.
      TypeError: an argument has another type.

    >>> import dcjax, flax.linen as nn, numpy as np, optax
    >>> network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> recipe = dcjax.training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    >>> trainer = dcjax.training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    >>> images = np.zeros((2, 4, 4, 3), np.uint8)
    >>> state = trainer.start(network.init(jax.random.key(0), images), jax.random.key(1))
    >>> dcjax.training.predict(trainer, state, images).sum(axis=-1)
    array([1., 1.])
    """
    images = np.asarray(images)
    data = trainer.place(images, np.zeros(images.shape[:1], np.int32))
    logits = evaluate(trainer, state, data).astype(np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
