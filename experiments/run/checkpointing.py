"""The checkpoints of a run's stages: when to save, and where to continue."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from dcjax import method
from dcjax.checkpoints import Checkpoint, CheckpointError, Checkpoints
from dcjax.training import from_all, from_first
from experiments.data import Dataset
from experiments.run import machines
from experiments.run.console import Voice
from experiments.run.provenance import cpu_threads
from experiments.run.signals import Stop, Stopped
from experiments.run.workdir import CHECKPOINTS, Metrics, WorkdirError, differences, unwritable
from experiments.settings.flags import Keeping

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Keeper:
    """Opens the checkpoints of a run's stages, in `checkpoints/NAME` below `workdir`.

    Every checkpoint records its stage, and `settings`, `dataset` and `cpu_threads`.

    Attributes:
      settings: plain values by the names of their flags.
      dataset: the fingerprint of the data.
    """

    workdir: Path
    how: Keeping
    settings: Record
    dataset: Record
    voice: Voice
    log: Metrics
    stop: Stop
    _said: set[str] = dataclasses.field(default_factory=set)

    def say(self, line: str) -> None:
        """Print a line."""
        self.voice.say(line)

    warn = say

    def progress(self, line: str) -> None:
        """Print a line where no table shows the same."""
        self.voice.progress(line)

    def bar(
        self, title: str, steps: int
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """Show a bar while the context lasts."""
        return self.voice.bar(title, steps)

    def stopping(self) -> contextlib.AbstractContextManager[None]:
        """Let a signal wait for the end of the step while the context lasts."""
        return self.stop.after_this_step()

    def record(self, stage: str) -> Record:
        """Return what every checkpoint of a stage records."""
        return {
            "stage": stage,
            "settings": self.settings,
            "dataset": self.dataset,
            "cpu_threads": cpu_threads(),
        }

    def has(self, name: str) -> bool:
        """Return whether the stage of that name has checkpoints."""
        folder = self.workdir / CHECKPOINTS / name
        return folder.is_dir() and bool(Checkpoints(folder, writer=jax.process_index()).steps())

    @contextlib.contextmanager
    def opened(self, name: str, *, apart: bool = False) -> Iterator["Kept"]:
        """Open the checkpoints of the stage of that name; the context's end waits for saves.

        Of several processes each has the checkpoints of its sub-networks, and of its copies of the
        global network if these train apart. Others of the global network are process 0's, and the
        others get what it has found.
        """
        number, several = jax.process_index(), jax.process_count() > 1
        apart = apart and several
        common = several and not apart and not name.startswith("subnet")
        if common and number:
            there = from_first(b"")
            yield Kept(self, name, None, Checkpoint.from_bytes(there) if there else None)
            return

        def on_damage(error: CheckpointError) -> None:
            self.voice.say(f"{name}: {error}; using the one before")

        def on_failure(step: int, error: Exception) -> None:
            self.voice.say(f"{name}: step {step} is not saved, training continues: {error}")

        own = f"{name}-process-{number}" if apart and number else name
        folder = self.workdir / CHECKPOINTS / own
        # A process may be one save ahead of another one, and two after a kill.
        keep = max(self.how.keep, 3) if apart else self.how.keep
        try:
            checkpoints = Checkpoints(folder, keep=keep, on_failure=on_failure, writer=number)
        except OSError as error:
            raise unwritable(self.workdir, error) from None
        with checkpoints:
            try:
                newest = _newest_of_all if apart else Checkpoints.newest
                found = newest(checkpoints, on_damage)
            except CheckpointError as error:
                raise WorkdirError(f"{error}. Start the run again with --fresh") from None
            stage = f"{name} in {jax.process_count()} processes" if apart else name
            if found is not None:
                self._check(stage, folder, found.record)
            self.log.cut(name, -1 if found is None else found.step)
            file, lines = found.record["metrics"] if found else ("", 0)
            if file == self.log.name and self.log.lines[name] < lines:
                self.note(f"{file} was deleted or cut; its lost lines are not written again")
            if common:
                from_first(found.to_bytes() if found else b"")
            yield Kept(self, name, checkpoints, found, stage)

    def note(self, line: str) -> None:
        """Say a line, but once only in this run."""
        if line not in self._said:
            self._said.add(line)
            self.voice.say(f"note: {line}")

    def _check(self, stage: str, folder: Path, record: Record) -> None:
        """Refuse a checkpoint of another stage or run, and note other numbers of threads."""
        here, remedy = self.record(stage), "Take that folder away, or start again with --fresh"
        if record.get("stage") != stage:
            raise WorkdirError(
                f"{folder} holds checkpoints of the stage {record.get('stage')}, expected {stage}. "
                f"{remedy}"
            )
        # The data are compared by what they are: on another machine they may lie elsewhere.
        there, settings = (
            {key: value for key, value in each.items() if key != "dataset"}
            for each in (record["settings"], self.settings)
        )
        if difference := differences(there, settings):
            raise WorkdirError(
                f"{folder} holds checkpoints of a run with other settings:\n  "
                + "\n  ".join(difference)
                + f"\n{remedy}"
            )
        if record["dataset"] != self.dataset:
            raise WorkdirError(
                f"{folder} holds checkpoints of a run on other data: {record['dataset']} there, "
                f"{self.dataset} here. Give the same data, or another --workdir. {remedy}"
            )
        before, now = record["cpu_threads"], here["cpu_threads"]
        if before != now and jax.default_backend() == "cpu":
            self.note(
                f"this run began with {before} CPU threads and goes on with {now}; the last bits "
                "of its results depend on that"
            )


class Kept:
    """The checkpoints of one stage; `found` is the newest at its start, None if it had none.

    Without `checkpoints` another process saves them.
    """

    def __init__(
        self,
        keeper: Keeper,
        name: str,
        checkpoints: Checkpoints | None,
        found: Checkpoint | None,
        stage: str = "",
    ):
        self.found = found
        self._keeper = keeper
        self._name = name
        self._stage = stage or name
        self._checkpoints = checkpoints
        self._last = found.step if found else 0

    def into(self, like: PyTree) -> PyTree:
        """Return what was found, in the structure of `like`.

        Raises:
          WorkdirError: it is of another tree.
        """
        assert self.found is not None
        try:
            return self.found.into(like)
        except ValueError as error:
            folder = self._keeper.workdir
            raise WorkdirError(f"{folder}: {error}\n--fresh starts the run again") from None

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        """Return whether to save after this step; by default at the end of every epoch."""
        every = self._keeper.how.checkpoint_every
        if self._signal(step) is not None:
            return True
        return epoch_ends if every is None else step // every > self._last // every

    def save(self, step: int, tree: PyTree, record: Record, *, finished: bool = False) -> None:
        """Save in the background; raise `Stopped` after the save if the run was asked to stop."""
        keeper = self._keeper
        lines = [keeper.log.name, keeper.log.lines[self._name]]
        common = keeper.record(self._stage) | {"metrics": lines, "finished": finished}
        if self._checkpoints is not None:
            self._checkpoints.save(step, tree, common | record)
        self._last = step
        if (number := self._signal(step)) is not None:
            if self._checkpoints is not None:
                self._checkpoints.wait()
            raise Stopped(number)

    def _signal(self, step: int) -> int | None:
        """Return the signal that ends the run after this step, None if it goes on."""
        alone = self._name.startswith("subnet")
        return machines.signal_after(self._keeper.stop.asked, None if alone else self._name, step)

    def before(self) -> Checkpoint | None:
        """Return the newest readable checkpoint, None if there is none; wait for saves."""
        if self._checkpoints is None:
            return None
        self._checkpoints.wait()
        return self._checkpoints.newest(lambda error: None)


def _newest_of_all(
    checkpoints: Checkpoints, on_damage: Callable[[CheckpointError], None]
) -> Checkpoint | None:
    """Return the newest checkpoint of a step that every process can read, None if there is none."""
    readable: dict[int, Checkpoint] = {}
    for step in checkpoints.steps():
        try:
            readable[step] = checkpoints.load(step)
        except CheckpointError as error:
            on_damage(error)
    everyone = [json.loads(steps) for steps in from_all(json.dumps([*readable]).encode())]
    common = set(readable).intersection(*everyone)
    return readable[max(common)] if common else None


def fingerprint(dataset: Dataset) -> Record:
    """Return the name, the sizes and the SHA-256 of the images and labels of a data set."""
    sizes = {"train": len(dataset.train.labels), "test": len(dataset.test.labels)}
    sha256 = method.digest(*dataset.train, *dataset.test)
    return {"name": dataset.name, **sizes, "sha256": sha256}
