"""One phase of a run: compiled, trained, measured after every epoch, logged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from dcjax import training
from experiments.data import Split
from experiments.progress import Voice
from experiments.report import nats, percent
from experiments.score import Score
from experiments.workdir import Log

PyTree = Any
Logits = Callable[[training.TrainState], Float[np.ndarray, "*K N C"]]
Measure = Callable[[training.TrainState], Score]

_START = training.Epoch(0, 0.0, 0.0, np.zeros(0))


class Plan(NamedTuple):
    """A phase that is to be run.

    Attributes:
      name: its name in the metrics.
      title: its name for people.
      variables: what it starts from; a Stacked side by side.
      measure: scores a state on the test split, at the start and after every epoch, outside the
        measured time; None to train only.
    """

    name: str
    title: str
    phase: training.Phase
    variables: PyTree
    key: Key[Array, ""]
    epochs: int
    measure: Measure | None = None


class Trained(NamedTuple):
    """What came of a phase.

    Attributes:
      state: the last one, on the devices.
      variables: its variables, on one device.
      times: epochs, seconds and device_seconds, as the results have them.
      curve: epoch, seconds, device_seconds, accuracy and cost, from epoch 0 on; empty if nothing
        was measured.
    """

    state: training.TrainState
    variables: PyTree
    compile_seconds: float
    times: dict[str, Any]
    curve: list[dict[str, Any]]


def train(plan: Plan, split: Split, voice: Voice, log: Log) -> Trained:
    """Run a phase.

    Args:
      plan: what to run.
      split: the training images.
      voice: told of every epoch.
      log: given every epoch's figures.
    """
    curve: list[dict[str, Any]] = []

    def note(done: training.Epoch, state: training.TrainState) -> None:
        entry = _figures(plan, done, state)
        if plan.measure:
            curve.append(entry)
        if done.epoch or plan.measure:
            log(phase=plan.name, step=done.epoch * len(done.losses), loss=_loss(done), **entry)
            voice.say(_line(plan, done, entry))

    state = plan.phase.start(plan.variables, plan.key)
    note(_START, state)
    result = _fit(plan, state, split, voice, note)
    last = result.history[-1] if result.history else _START
    times = {"epochs": last.epoch, "seconds": last.seconds, "device_seconds": last.device_seconds}
    variables = plan.phase.finish(result.state)
    return Trained(result.state, variables, result.compile_seconds, times, curve)


def exact_logits(phase: training.Phase, split: Split) -> Logits:
    """The function that gives a state's logits on a split, in full single precision.

    Accelerators multiply float32 with fewer bits unless told otherwise; the bounds, and the
    equality of composed network and sub-networks, would drown in that.
    """
    data = phase.place(*split)

    def logits(state: training.TrainState) -> Float[np.ndarray, "*K N C"]:
        with jax.default_matmul_precision("highest"):
            return training.evaluate(phase, state, data)

    return logits


def _fit(
    plan: Plan,
    state: training.TrainState,
    split: Split,
    voice: Voice,
    note: Callable[[training.Epoch, training.TrainState], None],
) -> training.Fit:
    """Compile and train; nothing of both if there is no epoch to train."""
    if not plan.epochs:
        return training.Fit(state, [], 0.0)
    data = plan.phase.place(*split)
    voice.say(f"{plan.title}: compiling")
    phase, seconds = training.compile(plan.phase, state, data)
    steps = plan.epochs * training.steps_per_epoch(len(split.labels), phase.batch_size)
    with voice.bar(plan.title, steps) as advance:
        result = training.fit(
            phase, state, data, plan.epochs, on_epoch=note, on_step=lambda step, _: advance(step)
        )
    return result._replace(compile_seconds=seconds)


def _figures(plan: Plan, done: training.Epoch, state: training.TrainState) -> dict[str, Any]:
    """An entry of the curve."""
    entry = {
        "epoch": done.epoch,
        "seconds": done.seconds,
        "device_seconds": done.device_seconds,
    }
    return entry | (plan.measure(state)._asdict() if plan.measure else {})


def _loss(done: training.Epoch) -> float | list[float] | None:
    """The mean training loss over the epoch's steps, one for each sub-network."""
    return done.losses.mean(axis=0).tolist() if len(done.losses) else None


def _line(plan: Plan, done: training.Epoch, entry: dict[str, Any]) -> str:
    """An epoch in one line, for people."""
    parts = [f"{plan.title}: " + (f"epoch {done.epoch}/{plan.epochs}" if done.epoch else "start")]
    if len(done.losses):
        losses = np.atleast_1d(done.losses.mean(axis=0))
        parts.append("loss " + " ".join(f"{loss:.3f}" for loss in losses))
    if plan.measure:
        parts.append(f"accuracy {percent(entry['accuracy'])}, cost {nats(entry['cost'])}")
    if done.epoch:
        left = done.seconds / done.epoch * (plan.epochs - done.epoch)
        parts.append(f"{done.seconds:.1f} s" + (f", {left:.0f} s to go" if left else ""))
    return "  ".join(parts)
