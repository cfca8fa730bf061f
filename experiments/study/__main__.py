"""Run the study and rewrite its tables: `python -m experiments.study`."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro

from experiments.study import grid, trials


@dataclasses.dataclass(frozen=True)
class Options:
    """Run the declared trials that have no results yet, and rewrite the tables from all.

    It goes on where it was; `--minutes` bounds a sitting, `--report` only writes what is there.
    """

    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar=" ".join(grid.STUDIES))] = tuple(
        grid.STUDIES
    )
    """The studies."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[ARM ...]")] = ()
    """Run these arms only, in this order; the tables hold all that is there. () is all."""
    seeds: int = 3
    """Seeds behind every number that is quoted; trials that only tune have one."""
    data_dir: Path | None = None
    """Where tensorflow-datasets keeps its data; by default TFDS_DATA_DIR, or its own place."""
    runs: Path = Path("runs/study")
    """The trials' folders."""
    records: Path = Path("docs/study")
    """Their settings and results, a file a study, which stay when the folders go: a trial that is
    here is not run again."""
    minutes: float | None = None
    """Begin no trial after so many minutes."""
    report: bool = False
    """Run nothing."""
    output: Path = Path("docs/results.md")
    """The document whose tables and curves are rewritten, between their markers."""
    summary: Path = Path("BENCHMARKS.md")
    """The document that holds the comparison with the baseline only."""


def main() -> int:
    """The exit code: 0 done, 1 a trial failed, 2 bad input, 75 trials are left for another time."""
    options = tyro.cli(Options, prog="python -m experiments.study")
    program = "python -m experiments.study: "
    unknown = set(options.only) - set(grid.STUDIES)
    documents = (options.output, options.summary)
    if unknown or options.seeds < 1 or not all(each.is_file() for each in documents):
        print(
            f"{program}error: expected --only of {' '.join(grid.STUDIES)}, --seeds ≥ 1 and an "
            f"existing --output and --summary, got {sorted(unknown)}, {options.seeds}, "
            f"{' and '.join(map(str, documents))}",
            file=sys.stderr,
        )
        return 2

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    declared = list(trials.trials(options.only, options.runs, options.records, options.seeds))
    names = dict.fromkeys(trial.arm.name for trial in declared)
    if strange := [arm for arm in options.arms if arm not in names]:
        print(
            f"{program}error: expected --arms of {' '.join(names)}, got {' '.join(strange)}",
            file=sys.stderr,
        )
        return 2
    todo = declared
    if options.arms:
        todo = sorted(
            (trial for trial in declared if trial.arm.name in options.arms),
            key=lambda trial: (
                options.only.index(trial.study),
                trial.seed,
                options.arms.index(trial.arm.name),
            ),
        )
    complete = True
    if not options.report:
        try:
            complete = trials.run(todo, declared, options.data_dir, options.minutes, say)
        except subprocess.CalledProcessError as error:
            say(f"{program}error: a trial ended with {error.returncode}; the same command goes on")
            return 1
        except KeyboardInterrupt:
            say(f"{program}stopped; the same command goes on")
            return 130
    from experiments.study import report

    for name in options.only:
        try:
            own = [trial for trial in declared if trial.study == name]
            done = report.write(*documents, name, own)
            if done:
                trials.keep(own[0].records, (each.trial for each in done))
        except ValueError as error:
            say(f"{program}error: {error}")
            return 2
        say(f"{name}: {len(done)} trials of {len(own)}")
    return 0 if complete else 75


if __name__ == "__main__":
    sys.exit(main())
