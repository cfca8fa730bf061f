"""Run the benchmarks and rewrite the tables of BENCHMARKS.md."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.extras import needed

PROGRAM = "python -m experiments.benchmark"

with needed(PROGRAM, "bench"):
    import tyro

    from experiments.benchmark import tables
    from experiments.run import startup

DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure side by side in one process, and rewrite the tables of BENCHMARKS.md.

    The same command continues an interrupted benchmark. PyTorch is measured, too, if it is
    installed (`pip install -e '.[bench]'`).
    """

    only: tuple[str, ...] = tables.NAMES
    """The tables: convolutions, copies, layouts, steps; the steps take an hour on two cores."""
    runs: int = 7
    """Runs of each row, after one that warms up; medians are quoted."""
    results: Path = Path("runs/benchmark.json")
    """The measured rows. Those of another machine, of other versions or of another number of runs
    are measured again."""
    output: Path = Path("BENCHMARKS.md")
    """The document whose tables are rewritten, between their markers."""


def _problems(options: Options) -> Iterator[str]:
    """Yield every problem of the options."""
    for name in options.only:
        if name not in tables.NAMES:
            yield f"--only {name}: choose from {' '.join(tables.NAMES)}"
    if options.runs < 1:
        yield f"--runs {options.runs}: expected at least 1"
    if not options.output.is_file():
        yield f"--output {options.output}: the file does not exist"


def main() -> int:
    """Run the command and return the exit code: 0 done, 2 bad input."""
    options = tyro.cli(Options, prog=PROGRAM)
    if problems := list(_problems(options)):
        print(f"{PROGRAM}: error: " + "\n  ".join(problems), file=sys.stderr)
        return 2
    startup.start_jax(DEVICES)
    import jax

    from experiments.benchmark import record

    platform = jax.default_backend()
    for name in options.only:
        table = tables.load(name)
        place = name if platform == "cpu" else f"{name} on {platform}"
        measured = record.begin(options.results, place, options.runs)
        for row, arguments in table.rows(platform).items():
            if row not in measured.rows:
                print(f"{place}: {row}", file=sys.stderr, flush=True)
                measured.rows[row] = table.measure(*arguments, options.runs)
                record.keep(options.results, place, measured)
        if measured.rows:  # the CPU's convolutions have none on an accelerator
            command = f"{PROGRAM} --only {name} --runs {options.runs}"
            record.publish(options.output, place, command, measured, table.render(measured.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
