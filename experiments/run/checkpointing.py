"""What a run leaves on the disk as it goes, and takes up again: the checkpoints of its phases."""

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dcjax.checkpoints import Checkpoint, CheckpointError, Checkpoints
from experiments.data import Dataset
from experiments.run.console import Voice
from experiments.run.signals import Stop, Stopped
from experiments.run.workdir import Metrics, WorkdirError
from experiments.settings.schema import Keeping

PyTree = Any
Record = dict[str, Any]
FOLDER = "checkpoints"


class Keeper(NamedTuple):
    """How the phases of a run are kept.

    Attributes:
      workdir: their checkpoints are in folders of their names below.
      settings: the run's flags, which every checkpoint repeats.
      dataset: what tells the data from other data.
    """

    workdir: Path
    how: Keeping
    settings: Record
    dataset: Record
    voice: Voice
    log: Metrics
    stop: Stop

    def has(self, name: str) -> bool:
        """Whether a phase of that name has left anything."""
        return any((self.workdir / FOLDER / name).glob("*.json"))

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator["Kept"]:
        """The checkpoints of the phase of that name, as long as the context lasts."""

        def say(error: CheckpointError) -> None:
            self.voice.say(f"{name}: {error}; taking the one before")

        def failed(step: int, error: Exception) -> None:
            self.voice.say(f"{name}: step {step} is not saved, training goes on: {error}")

        try:
            checkpoints = Checkpoints(
                self.workdir / FOLDER / name, keep=self.how.keep, on_failure=failed
            )
        except OSError as error:
            raise WorkdirError(f"{self.workdir} cannot be written: {error.strerror}") from None
        with checkpoints:
            try:
                found = checkpoints.newest(say)
            except CheckpointError as error:
                raise WorkdirError(f"{error}. --fresh starts the whole run anew") from None
            if found is not None and found.record["dataset"] != self.dataset:
                raise WorkdirError(
                    f"{self.workdir} holds a run on other data: {found.record['dataset']} there, "
                    f"{self.dataset} here. Give the same data, another --workdir, or --fresh"
                )
            if found is None or not found.record["finished"]:
                self.log.rewind(found.record["metrics"] if found else None)
            else:
                self.log.pass_over(found.record["metrics"])
            yield Kept(self, checkpoints, found)


class Kept:
    """The checkpoints of one phase.

    * `found`: the newest, from before; None if there is none.
    """

    def __init__(self, keeper: Keeper, checkpoints: Checkpoints, found: Checkpoint | None):
        self.found = found
        self._keeper = keeper
        self._checkpoints = checkpoints
        self._last = found.step if found else 0

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        """Whether the state after this step is to be saved; by default where an epoch ends."""
        every = self._keeper.how.checkpoint_every
        if self._keeper.stop.asked is not None:
            return True
        return epoch_ends if every is None else step // every > self._last // every

    def save(self, step: int, tree: PyTree, record: Record, *, finished: bool = False) -> None:
        """Save in the background; if the run has been asked to stop, wait for it and stop."""
        keeper = self._keeper
        common = {
            "settings": keeper.settings,
            "dataset": keeper.dataset,
            "metrics": keeper.log.position(),
            "finished": finished,
        }
        self._checkpoints.save(step, tree, common | record)
        self._last = step
        if finished:
            keeper.log.pass_over(keeper.log.position())
        if keeper.stop.asked is not None:
            self._checkpoints.wait()
            raise Stopped(keeper.stop.asked)

    def before(self) -> Checkpoint | None:
        """The newest checkpoint there is now."""
        self._checkpoints.wait()
        return self._checkpoints.newest(lambda error: None)


def fingerprint(dataset: Dataset) -> Record:
    """What tells one set of images from another."""
    train, test = dataset.train, dataset.test
    digest = 0
    for array in (*train, *test):
        digest = zlib.crc32(np.ascontiguousarray(array).data, digest)
    sizes = len(train.labels), len(test.labels)
    return {"name": dataset.name, "train": sizes[0], "test": sizes[1], "crc32": digest}
