"""One phase of a run: compiled, trained, measured as it goes, logged."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from dcjax import Stacked, training
from dcjax._layout.json import layout_to_json
from experiments.data import Split
from experiments.results.score import Score
from experiments.results.summary import nats, percent
from experiments.run.checkpointing import Keeper, Kept
from experiments.run.workdir import WorkdirError

PyTree = Any
Logits = Callable[[training.TrainState], Float[np.ndarray, "*K N C"]]
Measure = Callable[[training.TrainState], Score]


class Watch(Protocol):
    """What looks at a phase as it goes (`members.Watcher`); states are in plain form."""

    def record(self) -> dict[str, Any]:
        """What a checkpoint has to say of it."""
        ...

    def remember(self, record: dict[str, Any]) -> None:
        """Take up what a checkpoint says."""
        ...

    def put_aside(self, kept: Kept, tree: training.TrainState) -> None:
        """Called before a state is saved."""
        ...

    def after_epoch(self, tree: training.TrainState, done: training.Epoch) -> None:
        """Called after an epoch, before it is saved."""
        ...


class Plan(NamedTuple):
    """A phase that is to be run.

    Attributes:
      name: its name in the metrics, and of its checkpoints' folder.
      title: its name for people.
      variables: what it starts from; a Stacked side by side.
      measure: scores a state on the test split, at the start, after every epoch, and within where
        `every` says so, outside the measured time; None to train only.
      every: steps between measurements within an epoch; None for none.
      watch: told of what diverges; None to look for nothing. It sees whole epochs, so not with
        `every`.
      fresh_key: whether it goes on with `key` instead of the checkpoint's.
      opt_state: the optimiser's to start from; None to start it anew.
    """

    name: str
    title: str
    trainer: training.Trainer
    variables: PyTree
    key: Key[Array, ""]
    epochs: int
    measure: Measure | None = None
    every: int | None = None
    watch: Watch | None = None
    fresh_key: bool = False
    opt_state: PyTree = None


class Progress(NamedTuple):
    """What a phase has come to, as its checkpoints and the results have it.

    Attributes:
      epochs: those that are whole.
      seconds: of training; `device_seconds` likewise.
      curve: epoch, seconds, device_seconds, accuracy and cost, from epoch 0 on; empty if nothing
        is measured.
    """

    epochs: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    compile_seconds: float = 0.0
    curve: tuple[dict[str, Any], ...] = ()

    @property
    def times(self) -> dict[str, Any]:
        """As the results have them."""
        return {name: getattr(self, name) for name in ("epochs", "seconds", "device_seconds")}


class Trained(NamedTuple):
    """What came of a phase: the last state, on the devices, and its variables, on one device."""

    state: training.TrainState
    variables: PyTree
    progress: Progress


def train(plan: Plan, split: Split, keeper: Keeper) -> Trained:
    """Run a phase, or go on with what its checkpoints hold.

    Args:
      plan: what to run.
      split: the training images.
      keeper: keeps checkpoints and metrics, and speaks.
    """
    with keeper.opened(plan.name) as kept:
        state, progress = _begin(plan, kept, keeper)
        steps = training.steps_per_epoch(len(split.labels), plan.trainer.batch_size)
        if training.steps_done(state) < plan.epochs * steps:
            state, progress = _fit(plan, state, progress, split, kept, keeper)
        elif kept.found is None:
            kept.save(0, plan.trainer.to_host(state), _record(plan, progress, state), finished=True)
        return Trained(state, plan.trainer.finish(state), progress)


def exact_logits(trainer: training.Trainer, split: Split) -> Logits:
    """The function that gives a state's logits on a split, in full single precision.

    Accelerators multiply float32 with fewer bits unless told otherwise; the bounds, and the
    equality of composed network and sub-networks, would drown in that.
    """
    data = trainer.place(*split)

    def logits(state: training.TrainState) -> Float[np.ndarray, "*K N C"]:
        with jax.default_matmul_precision("highest"):
            return training.evaluate(trainer, state, data)

    return logits


def _begin(plan: Plan, kept: Kept, keeper: Keeper) -> tuple[training.TrainState, Progress]:
    """The state to go on from, and what it has come to."""
    state = plan.trainer.start(plan.variables, plan.key)
    if kept.found is None:
        if plan.opt_state is not None:
            state = state._replace(opt_state=plan.trainer.to_devices(plan.opt_state))
        progress = Progress()
        if plan.measure:
            progress = _told(plan, progress, state, keeper, 0, 0, None)
        return state, progress
    try:
        saved = kept.found.into(plan.trainer.to_host(state))
    except ValueError as error:
        raise WorkdirError(f"{keeper.workdir}: {error}\n--fresh starts the run anew") from None
    if plan.fresh_key:
        saved = saved._replace(key=plan.trainer.to_host(state).key)
    progress = Progress(**kept.found.record["progress"])
    if not kept.found.record["finished"]:
        keeper.voice.say(f"{plan.title}: goes on from step {kept.found.step}")
    if plan.watch:
        plan.watch.remember(kept.found.record)
    return plan.trainer.to_devices(saved), progress._replace(curve=tuple(progress.curve))


def _fit(
    plan: Plan,
    state: training.TrainState,
    progress: Progress,
    split: Split,
    kept: Kept,
    keeper: Keeper,
) -> tuple[training.TrainState, Progress]:
    """Compile and train what is left, with a checkpoint now and then."""
    data = plan.trainer.place(*split)
    keeper.voice.say(f"{plan.title}: compiling")
    trainer, seconds = training.compile(plan.trainer, state, data, every=plan.every)
    steps = training.steps_per_epoch(len(split.labels), trainer.batch_size)
    progress = progress._replace(compile_seconds=progress.compile_seconds + seconds)
    last = plan.epochs * steps
    before = progress
    clock = time.perf_counter()

    def after(seconds: float, **changed: Any) -> Progress:
        """The progress so many seconds after `before`."""
        now = later(before, seconds)
        return progress._replace(seconds=now.seconds, device_seconds=now.device_seconds, **changed)

    def later(progress: Progress, seconds: float) -> Progress:
        device_seconds = seconds * training.physical_devices(trainer.devices)
        return progress._replace(
            seconds=progress.seconds + seconds,
            device_seconds=progress.device_seconds + device_seconds,
        )

    def save(step: int, state: training.TrainState, now: Progress) -> None:
        tree = trainer.to_host(state)
        if plan.watch:
            plan.watch.put_aside(kept, tree)
        kept.save(step, tree, _record(plan, now, state), finished=step == last)

    def on_step(step: int, state: training.TrainState) -> None:
        advance(step)
        # What is measured is measured before it is saved, or going on would leave it out.
        measured = step % steps == 0 or (plan.every is not None and step % plan.every == 0)
        if not measured and kept.due(step, epoch_ends=False):
            seconds = time.perf_counter() - clock
            save(step, state, after(progress.seconds - before.seconds + seconds))

    def on_epoch(done: training.Epoch, state: training.TrainState) -> None:
        nonlocal progress, before, clock
        step, epoch_ends = done.step, done.step % steps == 0
        progress = after(done.seconds, epochs=step // steps)
        epoch = progress.epochs if epoch_ends else step / steps
        progress = _told(plan, progress, state, keeper, step, epoch, done.losses.mean(axis=0))
        if plan.watch and epoch_ends:
            plan.watch.after_epoch(trainer.to_host(state), done)
        if step == last or kept.due(step, epoch_ends=epoch_ends):
            started = time.perf_counter()
            save(step, state, progress)
            if not epoch_ends:  # counts, as a save between measurements does
                spent = time.perf_counter() - started
                before, progress = later(before, spent), later(progress, spent)
        clock = time.perf_counter()

    with keeper.voice.bar(plan.title, last) as advance, keeper.stop.after_this_step():
        fitted = training.fit(
            trainer, state, data, plan.epochs, every=plan.every, on_epoch=on_epoch, on_step=on_step
        )
    return fitted.state, progress


def _record(plan: Plan, progress: Progress, state: training.TrainState) -> dict[str, Any]:
    """What a checkpoint has beside the state."""
    variables = state.variables
    layout = layout_to_json(variables.layout) if isinstance(variables, Stacked) else None
    record = {"phase": plan.name, "progress": progress._asdict(), "layout": layout}
    return record | (plan.watch.record() if plan.watch else {})


def _told(
    plan: Plan,
    progress: Progress,
    state: training.TrainState,
    keeper: Keeper,
    step: int,
    epoch: float,
    loss: np.ndarray | None,
) -> Progress:
    """Measure, log and say how far it has come; the progress with that entry of the curve.

    `loss` is the mean over the steps since the last entry, or since it was gone on with.
    """
    entry: dict[str, Any] = {"epoch": epoch}
    entry |= {name: getattr(progress, name) for name in ("seconds", "device_seconds")}
    if plan.measure:
        entry |= plan.measure(state)._asdict()
        progress = progress._replace(curve=(*progress.curve, entry))
    losses = None if loss is None else loss.tolist()
    keeper.log(phase=plan.name, step=step, loss=losses, **entry)
    keeper.voice.say(_line(plan, entry, loss))
    return progress


def _line(plan: Plan, entry: dict[str, Any], losses: np.ndarray | None) -> str:
    """How far it has come in one line, for people."""
    epoch = entry["epoch"]
    parts = [f"{plan.title}: " + (f"epoch {epoch:.4g}/{plan.epochs}" if epoch else "start")]
    if losses is not None:
        parts.append("loss " + " ".join(f"{loss:.3f}" for loss in np.atleast_1d(losses)))
    if plan.measure:
        parts.append(f"accuracy {percent(entry['accuracy'])}, cost {nats(entry['cost'])}")
    if epoch:
        left = round(entry["seconds"] / epoch * (plan.epochs - epoch))
        parts.append(f"{entry['seconds']:.1f} s" + (f", {left} s to go" if left else ""))
    return "  ".join(parts)
