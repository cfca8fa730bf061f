"""Run the study and rewrite its tables: `python -m experiments.study`."""

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from experiments.run.workdir import WorkdirError
from experiments.study import arms, trials


@dataclasses.dataclass(frozen=True)
class Options:
    """Run the declared trials that have no results yet, and rewrite the tables from all.

    It goes on where it was; `--minutes` bounds a sitting, `--report` only writes what is there.
    """

    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar=" ".join(arms.STUDIES))] = tuple(
        arms.STUDIES
    )
    """The studies."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[ARM ...]")] = ()
    """Run these arms only, in this order; the tables hold all that is there. By default all."""
    seeds: int = 3
    """Seeds behind every number that is quoted; trials that only tune have one."""
    data_dir: Path | None = None
    """Where tensorflow-datasets keeps its data; by default TFDS_DATA_DIR, or its own place."""
    runs: Path = Path("runs/study")
    """The trials' folders."""
    records: Path = Path("docs/study")
    """Their settings and results, a file a study, which stay when the folders go: a trial that is
    here is not run again."""
    jobs: int = 1
    """Run so many trials at once, for a device that one alone does not fill; each writes what it
    says into a file beside its folder. Trials that ran alone give the paces."""
    minutes: float | None = None
    """Begin no trial after so many minutes."""
    report: bool = False
    """Run nothing."""
    output: Path = Path("docs/results.md")
    """The document whose tables and curves are rewritten, between their markers."""
    summary: Path = Path("BENCHMARKS.md")
    """The document that holds the comparison with the baseline only."""


def _problems(options: Options) -> Iterator[str]:
    """What is wrong with the options."""
    for name in options.only:
        if name not in arms.STUDIES:
            yield f"--only {name}: choose from {' '.join(arms.STUDIES)}"
    if options.seeds < 1:
        yield f"--seeds {options.seeds}: expected at least 1"
    if options.jobs < 1:
        yield f"--jobs {options.jobs}: expected at least 1"
    if options.minutes is not None and not options.minutes >= 0:
        yield f"--minutes {options.minutes}: expected at least 0"
    for flag, place in (("--output", options.output), ("--summary", options.summary)):
        if not place.is_file():
            yield f"{flag} {place}: there is no such file"
    # Now, and not when the first table is to be written.
    if importlib.util.find_spec("matplotlib") is None:
        yield "the curves need matplotlib: pip install -e '.[study]'"


def main() -> int:
    """The exit code: 0 done, 1 a trial failed, 2 bad input, 75 trials are left for another time."""
    options = tyro.cli(Options, prog="python -m experiments.study")
    program = "python -m experiments.study: "

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if problems := list(_problems(options)):
        say(f"{program}error: " + "\n  ".join(problems))
        return 2
    declared = list(trials.trials(options.only, options.runs, options.records, options.seeds))
    names = dict.fromkeys(trial.arm.name for trial in declared)
    if strange := [arm for arm in options.arms if arm not in names]:
        say(f"{program}error: --arms {' '.join(strange)}: choose from {' '.join(names)}")
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
            complete = trials.run(
                todo, declared, options.data_dir, options.minutes, say, options.jobs
            )
        except subprocess.CalledProcessError as error:
            then = "mend what it says" if error.returncode == 2 else "the same command goes on"
            say(f"{program}error: a trial ended with {error.returncode}; {then}")
            return 1
        except KeyboardInterrupt:
            say(f"{program}stopped; the same command goes on")
            return 130
        except WorkdirError as error:
            say(f"{program}error: {error}")
            return 2
    from experiments.study import tables

    for name in options.only:
        try:
            own = [trial for trial in declared if trial.study == name]
            done = tables.write(options.output, options.summary, name, own)
            if done:
                trials.keep(own[0].records, (each.trial for each in done))
        except (ValueError, WorkdirError) as error:
            say(f"{program}error: {error}")
            return 2
        say(f"{name}: {len(done)} trials of {len(own)}")
    return 0 if complete else 75


if __name__ == "__main__":
    sys.exit(main())
