"""One stage of a run: compiled, trained, evaluated as it goes, kept, logged."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from dcjax import training
from experiments.data import Split
from experiments.method.divergence import Watcher
from experiments.results.score import Score
from experiments.results.summary import nats, percent
from experiments.run.checkpointing import Keeper, Kept
from experiments.run.workdir import WorkdirError

Logits = Callable[[training.TrainState], Float[np.ndarray, "*K N C"]]
Evaluate = Callable[[training.TrainState], Score]


class Plan(NamedTuple):
    """A stage to be run.

    Attributes:
      name: its name in the metrics, and of its checkpoints' folder.
      title: its name for people.
      variables: the variables it starts from; a `Stacked` side by side.
      evaluate: scores a state on the test split, outside the measured time: at the start, after
        every epoch, and every `every` steps; None to train only.
      every: steps between evaluations within an epoch; None for none.
      watch: notices what diverges, in whole epochs, so not with `every`; None to watch nothing.
      fresh_key: use `key` also where a checkpoint has another.
      opt_state: the optimiser's initial state; None for a new one.
    """

    name: str
    title: str
    trainer: training.Trainer
    variables: PyTree
    key: Key[Array, ""]
    epochs: int
    evaluate: Evaluate | None = None
    every: int | None = None
    watch: Watcher | None = None
    fresh_key: bool = False
    opt_state: PyTree = None


class Progress(NamedTuple):
    """How far a stage is, as its checkpoints and the results have it.

    Attributes:
      epochs: the number of whole epochs.
      seconds: of training; `device_seconds` likewise.
      curve: the evaluations (`results.schema.CurveEntry`), from epoch 0 on.
    """

    epochs: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    compile_seconds: float = 0.0
    curve: tuple[Any, ...] = ()


class Trained(NamedTuple):
    """The outcome of a stage: the last state, on the devices, and its variables, on one device."""

    state: training.TrainState
    variables: PyTree
    progress: Progress


def train(plan: Plan, split: Split, keeper: Keeper) -> Trained:
    """Run a stage, or continue it from its checkpoints.

    Args:
      plan: the stage.
      split: the training images.
      keeper: keeps checkpoints and metrics, and speaks.
    """
    with keeper.opened(plan.name) as kept:
        stage = _Stage(plan, len(split.labels), kept, keeper)
        state = stage.begin()
        if training.steps_done(state) < stage.last:
            state = stage.fit(state, split)
        elif kept.found is None:
            stage.save(0, state)
        return Trained(state, plan.trainer.finish(state), stage.clock.progress)


def exact_logits(trainer: training.Trainer, split: Split) -> Logits:
    """Return the function from a state to its logits on a split, in full single precision.

    Accelerators multiply float32 with fewer bits unless told otherwise. That error would exceed the
    margins of the bounds, and the difference between the composed network and the sub-networks.
    """
    data = trainer.place(*split)

    def logits(state: training.TrainState) -> Float[np.ndarray, "*K N C"]:
        with jax.default_matmul_precision("highest"):
            return training.evaluate(trainer, state, data)

    return logits


class _Clock:
    """The progress of a stage: what earlier runs of it took, and the seconds since `fit` began."""

    def __init__(self, progress: Progress, devices: int):
        self.progress = progress
        self._devices = devices
        self.begin()

    def begin(self) -> None:
        """Begin to measure."""
        self._before = self.progress
        self.resume()

    def resume(self) -> None:
        """Note that training continues now, after an evaluation or a save."""
        self._since = time.perf_counter()

    def at(self, seconds: float) -> Progress:
        """Return the progress after so many seconds of `fit`."""
        return self._later(self._before, seconds, self.progress)

    def now(self) -> Progress:
        """Return the progress at this moment, between two evaluations."""
        return self._later(self.progress, time.perf_counter() - self._since, self.progress)

    def add(self, seconds: float) -> None:
        """Count seconds that `fit` does not measure."""
        self._before = self._later(self._before, seconds, self._before)
        self.progress = self._later(self.progress, seconds, self.progress)

    def _later(self, start: Progress, seconds: float, rest: Progress) -> Progress:
        device_seconds = start.device_seconds + seconds * self._devices
        return rest._replace(seconds=start.seconds + seconds, device_seconds=device_seconds)


class _Stage:
    """A stage as it runs: `begin`, then `fit`."""

    def __init__(self, plan: Plan, images: int, kept: Kept, keeper: Keeper):
        self.plan = plan
        self.steps = training.steps_per_epoch(images, plan.trainer.batch_size)
        self.last = plan.epochs * self.steps
        self.clock = _Clock(Progress(), training.physical_devices(plan.trainer.devices))
        self._kept = kept
        self._keeper = keeper

    def begin(self) -> training.TrainState:
        """Return the state to continue from."""
        plan, trainer, found = self.plan, self.plan.trainer, self._kept.found
        state = trainer.start(plan.variables, plan.key)
        if found is None:
            if plan.opt_state is not None:
                state = state._replace(opt_state=trainer.to_devices(plan.opt_state))
            if plan.evaluate:
                self._report(0, 0, state, None)
            return state
        try:
            saved = found.into(trainer.to_host(state))
        except ValueError as error:
            raise WorkdirError(
                f"{self._keeper.workdir}: {error}\n--fresh starts the run again"
            ) from None
        if plan.fresh_key:
            saved = saved._replace(key=trainer.to_host(state).key)
        progress = Progress(**found.record["progress"])
        self.clock.progress = progress._replace(curve=tuple(progress.curve))
        if not found.record["finished"]:
            self._keeper.voice.say(f"{plan.title}: continues from step {found.step}")
        if plan.watch:
            plan.watch.resume(found.record)
        return trainer.to_devices(saved)

    def fit(self, state: training.TrainState, split: Split) -> training.TrainState:
        """Compile, and train the rest of the epochs."""
        plan, clock = self.plan, self.clock
        data = plan.trainer.place(*split)
        self._keeper.voice.say(f"{plan.title}: compiling")
        trainer, seconds = training.compile(plan.trainer, state, data, every=plan.every)
        compiled = clock.progress.compile_seconds + seconds
        clock.progress = clock.progress._replace(compile_seconds=compiled)
        clock.begin()

        def on_step(step: int, state: training.TrainState) -> None:
            advance(step)
            # A state that is to be evaluated is saved after that, or a run that continues from it
            # would leave the evaluation out.
            evaluated = step % self.steps == 0 or (plan.every and step % plan.every == 0)
            if not evaluated and self._kept.due(step, epoch_ends=False):
                self.save(step, state, clock.now())

        bar = self._keeper.voice.bar(plan.title, self.last)
        with bar as advance, self._keeper.stop.after_this_step():
            return training.fit(
                trainer,
                state,
                data,
                plan.epochs,
                every=plan.every,
                on_epoch=self._on_epoch,
                on_step=on_step,
            ).state

    def _on_epoch(self, done: training.Epoch, state: training.TrainState) -> None:
        """Evaluate, report and save at the end of an epoch, or of a part of it (`every`)."""
        step, ends, clock = done.step, done.step % self.steps == 0, self.clock
        clock.progress = clock.at(done.seconds)._replace(epochs=step // self.steps)
        epoch = clock.progress.epochs if ends else step / self.steps
        self._report(step, epoch, state, done.losses.mean(axis=0))
        if self.plan.watch and ends:
            self.plan.watch.after_epoch(self.plan.trainer.to_host(state), done)
        if step == self.last or self._kept.due(step, epoch_ends=ends):
            started = time.perf_counter()
            self.save(step, state)
            if not ends:  # a save within an epoch counts as training, as it does in `on_step`
                clock.add(time.perf_counter() - started)
        clock.resume()

    def save(self, step: int, state: training.TrainState, now: Progress | None = None) -> None:
        """Save a checkpoint, with the progress `now` if that is later than the clock's."""
        plain = self.plan.trainer.to_host(state)
        progress = self.clock.progress if now is None else now
        record = {"phase": self.plan.name, "progress": progress._asdict()}
        if self.plan.watch:
            self.plan.watch.before_save(self._kept, plain)
            record |= self.plan.watch.record()
        self._kept.save(step, plain, record, finished=step == self.last)

    def _report(
        self, step: int, epoch: float, state: training.TrainState, loss: np.ndarray | None
    ) -> None:
        """Evaluate, and write how far the stage is into the curve, the metrics and the console.

        Args:
          loss: the mean training loss since the last report, or since the run continued.
        """
        plan, progress = self.plan, self.clock.progress
        entry: dict[str, Any] = {"epoch": epoch, "seconds": progress.seconds}
        entry["device_seconds"] = progress.device_seconds
        if plan.evaluate:
            entry |= plan.evaluate(state)._asdict()
            self.clock.progress = progress._replace(curve=(*progress.curve, entry))
        losses = None if loss is None else loss.tolist()
        self._keeper.log(phase=plan.name, step=step, loss=losses, **entry)
        self._keeper.voice.say(_line(plan, entry, loss))


def _line(plan: Plan, entry: dict[str, Any], losses: np.ndarray | None) -> str:
    """Return how far the stage is in one line, for people."""
    epoch = entry["epoch"]
    parts = [f"{plan.title}: " + (f"epoch {epoch:.4g}/{plan.epochs}" if epoch else "start")]
    if losses is not None:
        parts.append("training loss " + " ".join(f"{loss:.3f}" for loss in np.atleast_1d(losses)))
    if plan.evaluate:
        parts.append(f"test accuracy {percent(entry['accuracy'])}, loss {nats(entry['cost'])}")
    if epoch:
        left = round(entry["seconds"] / epoch * (plan.epochs - epoch))
        parts.append(f"{entry['seconds']:.1f} s" + (f", {left} s to go" if left else ""))
    return "  ".join(parts)
