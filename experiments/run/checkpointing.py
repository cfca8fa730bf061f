"""The checkpoints of a run's stages: when to save, and where to continue."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from dcjax.checkpoints import Checkpoint, CheckpointError, Checkpoints
from experiments.data import Dataset
from experiments.run.console import Voice
from experiments.run.signals import Stop, Stopped
from experiments.run.workdir import Metrics, WorkdirError, unwritable
from experiments.settings.flags import Keeping

Record = dict[str, Any]
FOLDER = "checkpoints"


class Keeper(NamedTuple):
    """Opens the checkpoints of a run's stages, in `checkpoints/NAME` below `workdir`.

    `dataset` is the fingerprint of the data; every checkpoint records it.
    """

    workdir: Path
    how: Keeping
    dataset: Record
    voice: Voice
    log: Metrics
    stop: Stop

    def has(self, name: str) -> bool:
        """Return whether the stage of that name has checkpoints."""
        folder = self.workdir / FOLDER / name
        return folder.is_dir() and bool(Checkpoints(folder).steps())

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator["Kept"]:
        """Open the checkpoints of the stage of that name; the context's end waits for saves."""

        def on_damage(error: CheckpointError) -> None:
            self.voice.say(f"{name}: {error}; using the one before")

        def on_failure(step: int, error: Exception) -> None:
            self.voice.say(f"{name}: step {step} is not saved, training continues: {error}")

        folder = self.workdir / FOLDER / name
        try:
            checkpoints = Checkpoints(folder, keep=self.how.keep, on_failure=on_failure)
        except OSError as error:
            raise unwritable(self.workdir, error) from None
        with checkpoints:
            try:
                found = checkpoints.newest(on_damage)
            except CheckpointError as error:
                raise WorkdirError(f"{error}. Start the run again with --fresh") from None
            record: Record = found.record if found else {}
            if found is not None and record["dataset"] != self.dataset:
                raise WorkdirError(
                    f"{self.workdir} holds a run on other data: {record['dataset']} there, "
                    f"{self.dataset} here. Give the same data, another --workdir, or --fresh"
                )
            if record.get("metrics"):
                self.log.pass_over(record["metrics"])
            if not record.get("finished"):
                self.log.rewind()
            yield Kept(self, checkpoints, found)


class Kept:
    """The checkpoints of one stage; `found` is the newest at its start, None if it had none."""

    def __init__(self, keeper: Keeper, checkpoints: Checkpoints, found: Checkpoint | None):
        self.found = found
        self._keeper = keeper
        self._checkpoints = checkpoints
        self._last = found.step if found else 0

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        """Return whether to save after this step; by default at the end of every epoch."""
        every = self._keeper.how.checkpoint_every
        if self._keeper.stop.asked is not None:
            return True
        return epoch_ends if every is None else step // every > self._last // every

    def save(self, step: int, tree: PyTree, record: Record, *, finished: bool = False) -> None:
        """Save in the background; raise `Stopped` after the save if the run was asked to stop."""
        keeper = self._keeper
        position = keeper.log.position()
        common = {"dataset": keeper.dataset, "metrics": position, "finished": finished}
        self._checkpoints.save(step, tree, common | record)
        self._last = step
        if finished:
            keeper.log.pass_over(position)
        if keeper.stop.asked is not None:
            self._checkpoints.wait()
            raise Stopped(keeper.stop.asked)

    def before(self) -> Checkpoint | None:
        """Return the newest readable checkpoint, None if there is none; wait for saves."""
        self._checkpoints.wait()
        return self._checkpoints.newest(lambda error: None)


def fingerprint(dataset: Dataset) -> Record:
    """Return the name, the sizes and the SHA-256 of the images and labels of a data set."""
    digest = hashlib.sha256()
    for array in (*dataset.train, *dataset.test):
        digest.update(np.ascontiguousarray(array).data)
    sizes = {"train": len(dataset.train.labels), "test": len(dataset.test.labels)}
    return {"name": dataset.name, **sizes, "sha256": digest.hexdigest()}
