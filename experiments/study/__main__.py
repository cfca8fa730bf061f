"""Run a study, or write its tables: `python -m experiments.study`."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from experiments.extras import needed

PROGRAM = "python -m experiments.study"

with needed(PROGRAM, "experiments"):
    import tyro

    from experiments.study import trials
    from experiments.study.studies import STUDIES


@dataclasses.dataclass(frozen=True)
class Options:
    """Run the trials of studies that have no results yet, or write the tables of all results.

    The same command continues an interrupted study. Each trial's results are kept as it finishes.
    """

    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar=" ".join(STUDIES))] = ()
    """The studies to run. Some take hours: each module in experiments/study/studies says so."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[ARM ...]")] = ()
    """Run only these arms, in this order; by default all."""
    seeds: int = 3
    """Seeds of every arm that is quoted; arms that only tune have one."""
    data_dir: Path | None = None
    """The folder of tensorflow-datasets' data; by default TFDS_DATA_DIR, or that package's
    default."""
    runs: Path = Path("runs/study")
    """The folder of the trials' folders."""
    records: Path = Path("docs/study")
    """The folder of the trials' settings and results, a file a study. A trial that is recorded is
    not run again."""
    report: bool = False
    """Run nothing; write the tables and pictures of all studies into the document."""
    output: Path = Path("docs/results.md")
    """The document of --report; studies without a place `<!-- STUDY -->` in it are not written."""


def main() -> int:
    """Run the command and return the exit code: 0 done, 1 a trial failed, 2 bad input."""
    options = tyro.cli(Options, prog=PROGRAM)
    if options.report:
        _report(options)
        return 0
    if problem := _problem(options):
        _say(f"{PROGRAM}: error: {problem}")
        return 2
    try:
        _run(options)
    except subprocess.CalledProcessError as error:
        then = "correct the input" if error.returncode == 2 else "run the same command to continue"
        _say(f"{PROGRAM}: error: a trial ended with exit code {error.returncode}; {then}")
        return 1
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _problem(options: Options) -> str | None:
    if not options.only:
        return f"name the studies to run, --only {' '.join(STUDIES)}; or write tables, --report"
    if unknown := [name for name in options.only if name not in STUDIES]:
        return f"--only {' '.join(unknown)}: choose from {' '.join(STUDIES)}"
    names = dict.fromkeys(arm.name for name in options.only for arm in STUDIES[name].arms)
    if unknown := [arm for arm in options.arms if arm not in names]:
        return f"--arms {' '.join(unknown)}: choose from {' '.join(names)}"
    return None


def _run(options: Options) -> None:
    for name in options.only:
        study = STUDIES[name]
        if options.arms:
            by_name = {arm.name: arm for arm in study.arms}
            chosen = tuple(by_name[name] for name in options.arms if name in by_name)
            study = study._replace(arms=chosen)
        for trial in trials.trials(study, options.runs, options.records, options.seeds):
            if trial.results is None:
                _say(f"{name}: {trial.arm.name}, seed {trial.seed}")
                trials.run(trial, options.data_dir)


def _report(options: Options) -> None:
    # These import JAX and matplotlib, which running trials does not need.
    with needed(PROGRAM, "experiments"):
        from experiments.study import tables
        from experiments.study.outcomes import outcomes

    found = {}
    for name, study in STUDIES.items():
        declared = [*trials.trials(study, options.runs, options.records, options.seeds)]
        if finished := outcomes(declared):
            found[name] = finished
        _say(f"{name}: {len(finished)} trials of {len(declared)}")
    tables.report(options.output, found)


if __name__ == "__main__":
    sys.exit(main())
