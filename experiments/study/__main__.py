"""Run a study, or write its tables: `python -m experiments.study`."""

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.study import trials
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
    if options.seeds < 1:
        yield f"--seeds {options.seeds}: expected at least 1"
    if options.jobs < 1:
        yield f"--jobs {options.jobs}: expected at least 1"
    if options.minutes is not None and not options.minutes >= 0:
        yield f"--minutes {options.minutes}: expected at least 0"
    if not options.report:
        if not options.only:
            yield f"name the studies to run, --only {' '.join(STUDIES)}; or write tables, --report"
        return
    if not options.output.is_file():
        yield f"--output {options.output}: there is no such file"
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
    declared = list(trials.trials(studies, options.runs, options.records, options.seeds))
    names = dict.fromkeys(trial.arm.name for trial in declared)
    if unknown := [arm for arm in options.arms if arm not in names]:
        _say(f"{PROGRAM}: error: --arms {' '.join(unknown)}: choose from {' '.join(names)}")
        return 2
    return _report(options, declared) if options.report else _run(options, declared)


def _run(options: Options, declared: list[trials.Trial]) -> int:
    todo = declared
    if options.arms:
        todo = sorted(
            (trial for trial in declared if trial.arm.name in options.arms),
            key=lambda trial: (
                options.only.index(trial.study.name),
                trial.seed,
                options.arms.index(trial.arm.name),
            ),
        )
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


def _report(options: Options, declared: list[trials.Trial]) -> int:
    # These import JAX and matplotlib, which running trials does not need.
    from experiments.study import tables
    from experiments.study.outcomes import outcomes

    def write(name: str, how: Callable[..., None], *found: Any) -> None:
        try:
            how(options.output, *found)
        except ValueError as error:
            _say(f"  {name} is not written: {error}")

    lengths = []
    for name in dict.fromkeys(trial.study.name for trial in declared):
        its = [trial for trial in declared if trial.study.name == name]
        found = outcomes(its)
        _say(f"{name}: {len(found)} trials of {len(its)}")
        if name in LENGTHS:
            lengths.append(found)
        elif found:
            write(name, tables.report, found)
    if lengths:
        write("length", tables.report_lengths, lengths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
