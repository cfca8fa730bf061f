"""Run a study, or write its tables: `python -m experiments.study`."""

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from experiments.study import trials
from experiments.study.arms import Study
from experiments.study.studies import STUDIES, length

PROGRAM = "python -m experiments.study"
LENGTHS = dict.fromkeys(study.name for study in length.STUDIES)


@dataclasses.dataclass(frozen=True)
class Options:
    """Run the trials of studies that have no results yet, or write the tables of all results.

    The same command continues an interrupted study. Each trial's results are kept as it finishes.
    """

    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar=" ".join(STUDIES))] = ()
    """The studies; with --report by default all. Some take hours: each module in
    experiments/study/studies says how many."""
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
    jobs: int = 1
    """The number of trials that run at once, for a device that one alone does not fill. Each writes
    its output into a file beside its folder. Paces are taken from trials that ran alone."""
    minutes: float | None = None
    """Begin no trial after so many minutes."""
    report: bool = False
    """Run nothing; write the tables and pictures of all results into the document."""
    output: Path = Path("docs/results.md")
    """The document of --report; studies without a place `<!-- STUDY -->` in it are not written."""


def _problems(options: Options) -> Iterator[str]:
    """Yield every problem of the options."""
    for name in options.only:
        if name not in STUDIES:
            yield f"--only {name}: choose from {' '.join(STUDIES)}"
    for flag, number in (("seeds", options.seeds), ("jobs", options.jobs)):
        if number < 1:
            yield f"--{flag} {number}: expected at least 1"
    if options.minutes is not None and not options.minutes >= 0:
        yield f"--minutes {options.minutes}: expected at least 0"
    if not options.report:
        if not options.only:
            yield f"name the studies to run, --only {' '.join(STUDIES)}; or write tables, --report"
        return
    if not options.output.is_file():
        yield f"--output {options.output}: the file does not exist"
    if importlib.util.find_spec("matplotlib") is None:
        yield "the pictures need matplotlib: pip install -e '.[study]'"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Run the command and return the exit code.

    Returns:
      0 done, 1 a trial failed, 2 bad input, 75 trials are left, 130 interrupted.
    """
    options = tyro.cli(Options, prog=PROGRAM)
    if problems := list(_problems(options)):
        _say(f"{PROGRAM}: error: " + "\n  ".join(problems))
        return 2
    chosen = dict.fromkeys(options.only or STUDIES)
    if options.report and chosen.keys() & LENGTHS:
        chosen |= LENGTHS  # their table is one
    studies = [STUDIES[name] for name in chosen]
    names = dict.fromkeys(arm.name for study in studies for arm in study.arms)
    if unknown := [arm for arm in options.arms if arm not in names]:
        _say(f"{PROGRAM}: error: --arms {' '.join(unknown)}: choose from {' '.join(names)}")
        return 2
    return _report(options, studies) if options.report else _run(options, studies)


def _trials(options: Options, study: Study) -> list[trials.Trial]:
    return list(trials.trials(study, options.runs, options.records, options.seeds))


def _run(options: Options, studies: list[Study]) -> int:
    if options.arms:
        for n, study in enumerate(studies):
            by_name = {arm.name: arm for arm in study.arms}
            chosen = tuple(by_name[name] for name in options.arms if name in by_name)
            studies[n] = study._replace(arms=chosen)
    todo = [trial for study in studies for trial in _trials(options, study)]
    try:
        done = trials.run(todo, options.data_dir, options.minutes, _say, options.jobs)
    except subprocess.CalledProcessError as error:
        then = "correct the input" if error.returncode == 2 else "run the same command to continue"
        _say(f"{PROGRAM}: error: a trial ended with exit code {error.returncode}; {then}")
        return 1
    except KeyboardInterrupt:
        _say(f"{PROGRAM}: stopped; run the same command to continue")
        return 130
    return 0 if done else 75


def _report(options: Options, studies: list[Study]) -> int:
    # These import JAX and matplotlib, which running trials does not need.
    from experiments.study import tables
    from experiments.study.outcomes import outcomes

    found = {}
    for study in studies:
        its = _trials(options, study)
        found[study.name] = outcomes(its)
        _say(f"{study.name}: {len(found[study.name])} trials of {len(its)}")
    lengths = [found.pop(name) for name in LENGTHS if name in found]
    writers = [(tables.report, its) for its in found.values() if its]
    for write, its in [*writers, (tables.report_lengths, lengths)]:
        try:
            write(options.output, its)
        except ValueError as error:
            _say(f"not written: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
