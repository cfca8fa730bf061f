"""Running the trials: each the experiment's own command, in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from experiments import markdown
from experiments.run import startup, workdir
from experiments.settings import schema
from experiments.study import arms

# What the sub-networks' training does not depend on.
LATER = (
    "finetune_epochs",
    "evaluate_every",
    "finetune_rate",
    "finetune_warmup_epochs",
    "baseline_epochs",
    "baseline_warmup_epochs",
    "carry_momentum",
    "head_rate",
)


class Trial(NamedTuple):
    """One arm with one seed, the folder of its run, and the file where its results are kept."""

    study: str
    arm: arms.Arm
    seed: int
    folder: Path
    records: Path

    @property
    def name(self) -> str:
        """Of its folder, and in the records."""
        return self.folder.name

    @property
    def settings(self) -> schema.Settings:
        """Its settings, but for where it reads and writes."""
        return arms.settings(arms.STUDIES[self.study], self.arm, self.seed)

    @property
    def results(self) -> dict[str, Any] | None:
        """What it has left, here or in the records; None if it is not finished."""
        flags = schema.flat(self.settings)
        here = workdir.finished(self.folder, flags)
        if here is not None:
            return here
        kept = _read(self.records).get(self.name)
        if kept is None or workdir.differences(kept["settings"], flags):
            return None
        return kept["results"]


def trials(names: tuple[str, ...], runs: Path, records: Path, seeds: int) -> Iterator[Trial]:
    """All trials of the studies, first those of all arms with seed 0.

    Args:
      names: of the studies.
      runs: the folder of the trials' folders, which hold checkpoints.
      records: the folder of the results, a file a study: they stay where the runs do not.
      seeds: how many of each arm, unless it has fewer.
    """
    for name in names:
        for seed in range(seeds):
            for arm in arms.STUDIES[name].arms:
                if arm.seeds is None or seed < arm.seeds:
                    folder = runs / name / f"{arm.name}-seed{seed}"
                    yield Trial(name, arm, seed, folder, records / f"{name}.json")


def keep(records: Path, finished: Iterable[Trial]) -> None:
    """Put the results of a study's finished trials into its records, a line each."""
    kept = _read(records)
    for trial in finished:
        flags = schema.flat(trial.settings)
        settings = {name: value for name, value in flags.items() if name not in schema.PLACES}
        kept[trial.name] = {"settings": settings, "results": trial.results}
    records.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept))
    markdown.write(records, "{\n" + ",\n".join(lines) + "\n}\n")


def _read(records: Path) -> dict[str, Any]:
    return json.loads(records.read_text()) if records.is_file() else {}


def run(
    todo: list[Trial],
    declared: list[Trial],
    data_dir: Path | None,
    minutes: float | None,
    say: Callable[[str], None],
    jobs: int = 1,
) -> bool:
    """Run what has no results yet, so many at once; whether all has been run when it returns.

    A trial goes on where it was, if it has been begun; another that is declared may lend it its
    sub-networks. None is begun after so many minutes, nor after one has failed.

    Raises:
      subprocess.CalledProcessError: a trial failed; it has said why.
    """
    started = time.monotonic()
    ended = False
    # Not asked for again: another's folder may be half made while it runs.
    finished = [trial for trial in declared if trial.results is not None]

    def one(trial: Trial) -> bool:
        """Whether it has been run."""
        nonlocal ended
        if ended or (minutes is not None and time.monotonic() - started > 60 * minutes):
            return False
        say(f"{trial.study}: {trial.arm.name}, seed {trial.seed}")
        _lend(trial, finished, say)
        log = trial.folder.with_name(f"{trial.name}.log")
        try:
            _call(command(trial, data_dir), jobs, log)
        except subprocess.CalledProcessError:
            ended = True
            if jobs > 1:
                say(f"{trial.arm.name}, seed {trial.seed}, failed; what it said: {log}")
            raise
        finished.append(trial)
        return True

    left = [trial for trial in todo if trial not in finished]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            done = [*(map(one, left) if jobs == 1 else pool.map(one, left))]
        finally:
            ended = True  # whatever it was, none begins after it
    if not all(done):
        say("no time left for another trial; the same command goes on")
    return all(done)


def _call(command: list[str], jobs: int, log: Path) -> None:
    """Run a trial, by itself or as one of several at once."""
    if jobs == 1:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return
    # A GPU's memory is taken by shares, where JAX would have one process take most of it.
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.3f}"}
    env = share | dict(os.environ) | {startup.JOBS: str(jobs)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as said:
        subprocess.run(command, check=True, stdout=said, stderr=said, env=env)


def command(trial: Trial, data_dir: Path | None) -> list[str]:
    """The command of a trial, as a user would give it."""
    place = [] if data_dir is None else ["--data-dir", str(data_dir)]
    folder = ["--workdir", str(trial.folder)]
    return [sys.executable, "-m", "experiments.cifar10", *schema.as_args(trial.settings)] + (
        place + folder
    )


def _lend(trial: Trial, finished: list[Trial], say: Callable[[str], None]) -> None:
    """Take over the trained sub-networks of a finished one that differs in what comes later only.

    Runs are deterministic, so this is what its own training would come to.
    """
    own = trial.folder / "checkpoints"
    if own.exists() or not trial.settings.training.subnet_epochs:
        return
    for other in finished:
        if _of_subnets(other) == _of_subnets(trial):
            theirs = [*(other.folder / "checkpoints").glob("subnet*")]
            for folder in theirs:
                shutil.copytree(folder, own / folder.name)
            if theirs:
                say(f"  with the sub-networks of {other.arm.name}")
                return


def _of_subnets(trial: Trial) -> dict[str, Any]:
    # Without a final rate of their own it follows fine-tuning's.
    flags = schema.flat(trial.settings) | {"subnet_final_rate": trial.settings.subnet_final_rate}
    return {name: value for name, value in flags.items() if name not in LATER}
