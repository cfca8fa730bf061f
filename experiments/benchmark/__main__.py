"""Run the benchmarks and rewrite the tables of BENCHMARKS.md."""

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import tyro

from experiments.benchmark import tables
from experiments.run import startup

DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure side by side in one process, and rewrite the tables of BENCHMARKS.md.

    Rows that the results file already has, with this machine, these versions and this number of
    runs, are not measured again: the same command continues an interrupted benchmark. PyTorch is
    measured, too, if it is installed (`pip install -e '.[bench]'`).
    """

    only: tuple[str, ...] = tables.NAMES
    """The tables: convolutions, copies, engines, machine, norms, profile, scaling, steps."""
    runs: int = 7
    """Runs of each row, after one that warms up; medians are quoted."""
    full: bool = False
    """All depths, widths and numbers of sub-networks: hours on two cores."""
    results: Path = Path("runs/benchmark.json")
    """The measured rows."""
    output: Path = Path("BENCHMARKS.md")
    """The document whose tables are rewritten, between their markers."""
    fresh: bool = False
    """Measure all rows again."""
    minutes: float | None = None
    """Begin no row after so many minutes."""


def _problems(options: Options) -> Iterator[str]:
    """Yield every problem of the options."""
    for name in options.only:
        if name not in tables.NAMES:
            yield f"--only {name}: choose from {' '.join(tables.NAMES)}"
    if options.runs < 1:
        yield f"--runs {options.runs}: expected at least 1"
    if options.minutes is not None and not options.minutes >= 0:
        yield f"--minutes {options.minutes}: expected at least 0"
    if not options.output.is_file():
        yield f"--output {options.output}: the file does not exist"


def _places(options: Options) -> str:
    """Return the flags that place rows and tables elsewhere than by default."""
    usual = Options()
    chosen = {"results": (options.results, usual.results), "output": (options.output, usual.output)}
    return "".join(f" --{name} {path}" for name, (path, plain) in chosen.items() if path != plain)


def main() -> int:
    """Run the command and return the exit code: 0 done, 2 bad input."""
    options = tyro.cli(Options, prog="python -m experiments.benchmark")
    if problems := list(_problems(options)):
        print("python -m experiments.benchmark: error: " + "\n  ".join(problems), file=sys.stderr)
        return 2
    startup.start_jax(DEVICES)
    import jax

    from experiments.benchmark import document
    from experiments.benchmark.store import Store

    store = Store(options.results, fresh=options.fresh)
    started, platform = time.monotonic(), jax.default_backend()
    on = "" if platform == "cpu" else f" on {platform}"
    rows = (
        (f"{table}{on}", name, tables.load(table).measure, arguments)
        for table in options.only
        for name, arguments in tables.load(table).rows(platform, options.full).items()
    )
    for table, name, measure, arguments in rows:
        if store.has(table, name, options.runs):
            continue
        if options.minutes is not None and time.monotonic() - started > 60 * options.minutes:
            print(f"{table}: {name}: no time left; run the same command again", file=sys.stderr)
            break
        print(f"{table}: {name}", file=sys.stderr, flush=True)
        row = measure(*arguments, options.runs)
        store.add(table, name, row | {"runs": options.runs})
        document.rewrite(options.output, store.rows, _places(options))
    document.rewrite(options.output, store.rows, _places(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
