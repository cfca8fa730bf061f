"""Trials: the experiment's command, each in its own process, and the records of their results."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from experiments import markdown
from experiments.run import startup, workdir
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
    def results(self) -> dict[str, Any] | None:
        """The recorded results; None if there are none of these settings."""
        kept = read(self.records).get(self.folder.name)
        if kept is None or workdir.differences(kept["settings"], naming.flat(self.settings)):
            return None
        return kept["results"]


def trials(study: arms.Study, runs: Path, records: Path, seeds: int) -> Iterator[Trial]:
    """Yield the trials of a study, every arm with seed 0 before any arm with seed 1.

    Their folders are in `runs`, and hold checkpoints; the file of results is in `records`.
    """
    for seed, arm in itertools.product(range(seeds), study.arms):
        if arm.seeds is None or seed < arm.seeds:
            folder = runs / study.name / f"{arm.name}-seed{seed}"
            yield Trial(study, arm, seed, folder, records / f"{study.name}.json")


def keep(trial: Trial) -> None:
    """Write the results of a finished trial into the records of its study, a line a trial."""
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


def run(
    todo: Sequence[Trial],
    data_dir: Path | None,
    minutes: float | None,
    say: Callable[[str], None],
    jobs: int = 1,
) -> bool:
    """Run the trials that have no results yet, and keep the results of each as it finishes.

    A trial continues where it was interrupted. No trial begins after so many minutes, or after one
    has failed. `jobs` is the number of trials that run at once; `say` gets the lines of progress.

    Returns:
      Whether all trials have results.

    Raises:
      subprocess.CalledProcessError: a trial failed; it has printed the reason.
    """
    started = time.monotonic()
    ended = False
    writing = threading.Lock()

    def one(trial: Trial) -> bool:
        nonlocal ended
        if ended or (minutes is not None and time.monotonic() - started > 60 * minutes):
            return False
        say(f"{trial.study.name}: {trial.arm.name}, seed {trial.seed}")
        log = trial.folder.with_name(f"{trial.folder.name}.log")
        try:
            _call(command(trial, data_dir), jobs, log)
        except subprocess.CalledProcessError:
            ended = True
            if jobs > 1:
                say(f"{trial.arm.name}, seed {trial.seed}, failed; its output is in {log}")
            raise
        with writing:
            keep(trial)
        return True

    left = [trial for trial in todo if trial.results is None]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            # One at a time runs in this thread, which Ctrl-C interrupts.
            done = [*(map(one, left) if jobs == 1 else pool.map(one, left))]
        finally:
            ended = True  # the pool's threads begin no further trial after an exception
    if not all(done):
        say("no time left for another trial; run the same command to continue")
    return all(done)


def _call(command: list[str], jobs: int, log: Path) -> None:
    """Run a trial alone, or as one of several at once with its output in a log."""
    if jobs == 1:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return
    # By default one JAX process takes most of a GPU's memory.
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.3f}"}
    env = share | dict(os.environ) | {startup.JOBS: str(jobs)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as said:
        subprocess.run(command, check=True, stdout=said, stderr=said, env=env)


def command(trial: Trial, data_dir: Path | None) -> list[str]:
    """Return the command of a trial, as a user would type it."""
    place = [] if data_dir is None else ["--data-dir", str(data_dir)]
    chosen = naming.as_args(trial.settings)
    folder = ["--workdir", str(trial.folder)]
    return [sys.executable, "-m", "experiments.cifar10", *chosen, *place, *folder]
