"""One stage of a run: compiled, trained, evaluated as it goes, kept, logged."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from dcjax import training
from dcjax.method._history import GlobalPhase
from dcjax.method._journal import Journal, Kept
from dcjax.training._fit import several

Logits = Callable[[training.TrainState], Float[np.ndarray, "*K N C"]]
Evaluate = Callable[[training.TrainState], Mapping[str, Any]]
"""Returns `accuracy` and `cost` of a state: numbers, or side by side lists of them."""


class Split(NamedTuple):
    """The images and labels of one split of the data, in the host's memory."""

    images: Shaped[np.ndarray, "N ..."]
    labels: Int[np.ndarray, " N"]


@runtime_checkable
class Watch(Protocol):
    """A watch on sub-networks that may diverge.

    States are in plain form: each leaf has an entry for each sub-network in its leading axis.

    * `after_epoch(state, done)`: look at the state after an epoch, and at its record.
    * `before_save(kept, state)`: look at a state that is about to be saved.
    * `record()`: return what a checkpoint stores of the watch; `resume(record)`: continue from it.
    """

    def after_epoch(self, state: training.TrainState, done: training.Epoch) -> None: ...
    def before_save(self, kept: Any, state: training.TrainState) -> None: ...
    def record(self) -> dict[str, Any]: ...
    def resume(self, record: dict[str, Any]) -> None: ...


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
      remedy: what may help if the training diverges.
    """

    name: str
    title: str
    trainer: training.Trainer
    variables: PyTree
    key: Key[Array, ""]
    epochs: int
    evaluate: Evaluate | None = None
    every: int | None = None
    watch: Watch | None = None
    fresh_key: bool = False
    opt_state: PyTree = None
    remedy: str = "a lower learning rate"


class Progress(NamedTuple):
    """How far a stage is, as its checkpoints and the results have it.

    Attributes:
      epochs: the number of whole epochs.
      seconds: of training; `device_seconds` likewise.
      devices: the number used at once.
      curve: the evaluations (`CurveEntry`), from epoch 0 on.
    """

    epochs: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    compile_seconds: float = 0.0
    devices: int = 0
    curve: Sequence[Any] = ()

    def phase(self) -> GlobalPhase:
        """Return the results of a stage that was evaluated."""
        return {
            "epochs": self.epochs,
            "seconds": self.seconds,
            "device_seconds": self.device_seconds,
            "accuracy": self.curve[-1]["accuracy"],
            "cost": self.curve[-1]["cost"],
            "curve": list(self.curve),
        }


def run_stage(plan: Plan, split: Split, journal: Journal) -> tuple[training.TrainState, Progress]:
    """Run a stage, or continue it from its checkpoints.

    Args:
      plan: the stage.
      split: the training images.
      journal: keeps checkpoints and metrics, and speaks.

    Returns:
      The last state, on the devices, and the progress.

    >>> import dcjax, flax.linen as nn, optax
    >>> network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    >>> recipe = training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    >>> trainer = training.data_parallel(network, None, recipe)
    >>> split = Split(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int))
    >>> variables = network.init(jax.random.key(0), split.images)
    >>> plan = Plan("mine", "my stage", trainer, variables, jax.random.key(1), epochs=2)
    >>> state, progress = run_stage(plan, split, dcjax.method.Folder())
    >>> progress.epochs
    2
    """
    with journal.opened(plan.name, apart=plan.trainer.average is not None) as kept:
        stage = _Stage(plan, len(split.labels), kept, journal)
        state = stage.begin()
        if training.steps_done(state) < stage.last:
            state = stage.fit(state, split)
        elif kept.found is None:
            stage.save(0, state)
        return state, stage.progress


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


class _Stage:
    """A stage as it runs: `begin`, then `fit`."""

    def __init__(self, plan: Plan, images: int, kept: Kept, journal: Journal):
        self.plan = plan
        self.steps = training.steps_per_epoch(images, plan.trainer.batch_size)
        self.last = plan.epochs * self.steps
        self.progress = Progress(devices=len(plan.trainer.devices))
        self._since = 0.0
        self._diverged = False
        self._kept = kept
        self._journal = journal

    def begin(self) -> training.TrainState:
        """Return the state to continue from."""
        plan, trainer, found = self.plan, self.plan.trainer, self._kept.found
        state = trainer.start(plan.variables, plan.key, plan.opt_state)
        if found is None:
            if plan.evaluate:
                self._journal.say(f"{plan.title}: evaluating before the first step")
                self._report(0, 0, state, None)
            return state
        saved = self._kept.into(trainer.to_host(state))
        if plan.fresh_key:
            saved = saved._replace(key=trainer.to_host(state).key)
        # The number of devices is that of today.
        self.progress = Progress(**found.record["progress"] | {"devices": self.progress.devices})
        if not found.record["finished"]:
            self._journal.say(f"{plan.title}: continues from step {found.step}")
        if plan.watch:
            plan.watch.resume(found.record)
        return trainer.to_devices(saved)

    def fit(self, state: training.TrainState, split: Split) -> training.TrainState:
        """Compile, and train the rest of the epochs."""
        plan = self.plan
        data = plan.trainer.place(*split)
        self._journal.say(f"{plan.title}: compiling")
        trainer, seconds = training.compile(plan.trainer, state, data, every=plan.every)
        compiled = self.progress.compile_seconds + seconds
        self.progress = self.progress._replace(compile_seconds=compiled)

        def on_step(step: int, state: training.TrainState) -> None:
            advance(step)
            # A state that is to be evaluated is saved after that, or a run that continues from it
            # would leave the evaluation out.
            evaluated = step % self.steps == 0 or (plan.every and step % plan.every == 0)
            # Copies of several processes are saved where they have met: at an average.
            met = step % trainer.every == 0
            if not evaluated and self._kept.due(step, epoch_ends=False) and met:
                self._tick()
                self.save(step, state)

        bar = self._journal.bar(plan.title, self.last)
        with (
            bar as advance,
            self._journal.stopping(),
            warnings.catch_warnings(),
        ):
            # The watcher says it of sub-networks, and `_say_divergence` of the global network.
            warnings.filterwarnings("ignore", "the loss became NaN", RuntimeWarning)
            self._since = time.perf_counter()
            return training.fit(
                trainer,
                state,
                data,
                plan.epochs,
                every=plan.every,
                on_epoch=self._on_epoch,
                on_step=on_step,
            ).state

    def _tick(self) -> None:
        """Count the seconds until now as training."""
        seconds = time.perf_counter() - self._since
        self._since += seconds
        devices, before = training.physical_devices(self.plan.trainer.devices), self.progress
        self.progress = before._replace(
            seconds=before.seconds + seconds,
            device_seconds=before.device_seconds + seconds * devices,
        )

    def _on_epoch(self, done: training.Epoch, state: training.TrainState) -> None:
        """Evaluate, report and save at the end of an epoch, or of a part of it (`every`)."""
        self._tick()
        if self.plan.trainer.average is not None:
            done = done._replace(losses=done.losses.mean(axis=1))  # over the copies here
        step, ends = done.step, done.step % self.steps == 0
        self.progress = self.progress._replace(epochs=step // self.steps)
        epoch = self.progress.epochs if ends else step / self.steps
        self._report(step, epoch, state, done.losses.mean(axis=0))
        if not self.plan.watch and not self._diverged:
            self._say_divergence(done)
        if self.plan.watch and ends:
            self.plan.watch.after_epoch(self.plan.trainer.to_host(state), done)
        self._since = time.perf_counter()
        if step == self.last or self._kept.due(step, epoch_ends=ends):
            self.save(step, state)
        if ends:  # a save within an epoch counts as training, as it does in `on_step`
            self._since = time.perf_counter()

    def _say_divergence(self, done: training.Epoch) -> None:
        """Say once that the loss is not finite any more; the other stages may still be useful."""
        bad = ~np.isfinite(done.losses)
        if bad.any():
            self._diverged = True
            step = done.step - len(bad) + int(bad.argmax()) + 1
            self._journal.warn(
                f"{self.plan.title} diverged at step {step}: the loss became NaN or infinite; "
                f"{self.plan.remedy} may help"
            )

    def save(self, step: int, state: training.TrainState) -> None:
        """Save a checkpoint."""
        plain = self.plan.trainer.to_host(state)
        record: dict[str, Any] = {"progress": self.progress._asdict()}
        if self.plan.watch:
            self.plan.watch.before_save(self._kept, plain)
            record |= self.plan.watch.record()
        self._kept.save(step, plain, record, finished=step == self.last)

    def _report(
        self,
        step: int,
        epoch: float,
        state: training.TrainState,
        loss: np.ndarray | np.floating | None,
    ) -> None:
        """Evaluate, and write how far the stage is into the curve, the metrics and the console.

        Args:
          loss: the mean training loss since the last report, or since the run continued.
        """
        plan, progress = self.plan, self.progress
        entry: dict[str, Any] = {"epoch": epoch, "seconds": progress.seconds}
        entry["device_seconds"] = progress.device_seconds
        if plan.evaluate:
            entry |= plan.evaluate(state)
            self.progress = progress._replace(curve=[*progress.curve, entry])
        losses = None if loss is None else loss.tolist()
        self._journal.log(phase=plan.name, step=step, loss=losses, **entry)
        self._journal.progress(_line(plan, entry, loss))


def _line(plan: Plan, entry: dict[str, Any], losses: np.ndarray | np.floating | None) -> str:
    """Return how far the stage is in one line, for people."""
    epoch = entry["epoch"]
    parts = [f"{plan.title}: " + (f"epoch {epoch:.4g}/{plan.epochs}" if epoch else "start")]
    if losses is not None:
        parts.append(f"training loss {several(losses, '.3f')}")
    if plan.evaluate:
        accuracy = 100 * np.asarray(entry["accuracy"])
        parts.append(f"test accuracy {several(accuracy, '.2f')} %")
        if not accuracy.ndim:  # of K networks, K losses would make the line too long
            parts[-1] += f", loss {entry['cost']:.4f}"
    if epoch:
        left = entry["seconds"] / epoch * (plan.epochs - epoch)
        parts.append(_clock(entry["seconds"]) + (f", {_clock(left)} to go" if left else ""))
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    """Return a duration.

    >>> _clock(8.84), _clock(83), _clock(7500)
    ('8.8 s', '1m 23s', '2h 05m')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return "{}h {:02d}m".format(*divmod(round(seconds / 60), 60))
