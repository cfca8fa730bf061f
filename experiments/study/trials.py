"""Trials: the experiment's command, each in its own process, and the records of their results."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments import markdown
from experiments.results.schema import Results
from experiments.run import workdir
from experiments.settings import naming
from experiments.settings.flags import Settings
from experiments.study import arms


class Trial(NamedTuple):
    """One arm with one seed, the folder of its run, and the file that keeps its results."""

    study: arms.Study
    arm: arms.Arm
    seed: int
    folder: Path
    records: Path

    @property
    def settings(self) -> Settings:
        """The settings, except for the places where it reads and writes."""
        return arms.with_flags({**self.study.flags, **self.arm.flags, "seed": self.seed})

    @property
    def results(self) -> Results | None:
        """The recorded results; None if there are none of these settings.

        A setting that a record does not have was added later: its default is what the run did.
        """
        kept = read(self.records).get(self.folder.name)
        if kept is None:
            return None
        made = naming.flat(Settings()) | kept["settings"]
        return None if workdir.differences(made, naming.flat(self.settings)) else kept["results"]


def trials(study: arms.Study, runs: Path, records: Path, seeds: int) -> Iterator[Trial]:
    """Yield the trials of a study, every arm with seed 0 before any arm with seed 1.

    Their folders are in `runs`, and hold checkpoints; the file of results is in `records`.
    """
    for seed, arm in itertools.product(range(seeds), study.arms):
        if arm.seeds is None or seed < arm.seeds:
            folder = runs / study.name / f"{arm.name}-seed{seed}"
            yield Trial(study, arm, seed, folder, records / f"{study.name}.json")


def run(trial: Trial, data_dir: Path | None) -> None:
    """Run or continue a trial, and write its results into the records of its study, a line a trial.

    Raises:
      subprocess.CalledProcessError: it failed; it has printed the reason.
    """
    subprocess.run(command(trial, data_dir), check=True, stdout=subprocess.DEVNULL)
    values = naming.flat(trial.settings)
    settings = {name: value for name, value in values.items() if name not in naming.PLACES}
    results = workdir.finished(trial.folder, values)
    kept = read(trial.records) | {trial.folder.name: {"settings": settings, "results": results}}
    trial.records.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept))
    markdown.write(trial.records, "{\n" + ",\n".join(lines) + "\n}\n")


def read(records: Path) -> dict[str, Any]:
    """Return the records of a study by the names of the trials; {} if the file does not exist."""
    return json.loads(records.read_text()) if records.is_file() else {}


def command(trial: Trial, data_dir: Path | None) -> list[str]:
    """Return the command of a trial, as a user would type it."""
    place = [] if data_dir is None else ["--data-dir", str(data_dir)]
    chosen = naming.as_args(trial.settings)
    folder = ["--workdir", str(trial.folder)]
    return [sys.executable, "-m", "experiments.cifar10", *chosen, *place, *folder]
