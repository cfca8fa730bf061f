"""Run the benchmarks and rewrite the tables of BENCHMARKS.md."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tyro

from experiments.run import startup
from experiments.settings.schema import Network

TABLES = ("machine", "copies", "engines", "convolutions", "norms", "profile", "steps", "scaling")
DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure, side by side in one process, and rewrite the tables of BENCHMARKS.md.

    Rows that the results file has already, of this machine, these versions and as many runs, are
    not measured again, so that an interrupted benchmark goes on where it was. PyTorch is compared
    with where it is installed (`pip install -e '.[bench]'`).
    """

    only: tuple[str, ...] = TABLES
    """The tables: machine, copies, engines, convolutions, norms, profile, steps, scaling."""
    runs: int = 7
    """Runs of each row, after one that does not count; medians are quoted."""
    full: bool = False
    """All depths, widths and numbers of sub-networks: hours on two cores."""
    results: Path = Path("runs/benchmark.json")
    """The measured rows."""
    output: Path = Path("BENCHMARKS.md")
    """The document whose tables are rewritten, between their markers."""
    fresh: bool = False
    """Measure all rows again."""
    minutes: float | None = None
    """Begin no row after so many minutes; the same command goes on from there."""


def _problems(options: Options) -> Iterator[str]:
    """What is wrong with the options."""
    for name in options.only:
        if name not in TABLES:
            yield f"--only {name}: choose from {' '.join(TABLES)}"
    if options.runs < 1:
        yield f"--runs {options.runs}: expected at least 1"
    if options.minutes is not None and not options.minutes >= 0:
        yield f"--minutes {options.minutes}: expected at least 0"
    if not options.output.is_file():
        yield f"--output {options.output}: there is no such file"


def _places(options: Options) -> str:
    """The flags that say where rows and tables are kept, but for the usual places."""
    usual = Options()
    chosen = {"results": (options.results, usual.results), "output": (options.output, usual.output)}
    return "".join(f" --{name} {path}" for name, (path, plain) in chosen.items() if path != plain)


def main() -> int:
    """The exit code: 0 done, 2 bad input."""
    options = tyro.cli(Options, prog="python -m experiments.benchmark")
    if problems := list(_problems(options)):
        print("python -m experiments.benchmark: error: " + "\n  ".join(problems), file=sys.stderr)
        return 2
    startup.start_jax(DEVICES)
    import jax

    from experiments.benchmark import tables
    from experiments.benchmark.store import Store

    store = Store(options.results, fresh=options.fresh)
    started, platform = time.monotonic(), jax.default_backend()
    for plain, name, measure in cases(options, platform):
        table = tables.named(plain, platform)
        if store.has(table, name, options.runs):
            continue
        if options.minutes is not None and time.monotonic() - started > 60 * options.minutes:
            print(f"{table}: {name}: no time left; the same command goes on", file=sys.stderr)
            break
        print(f"{table}: {name}", file=sys.stderr, flush=True)
        full = options.full and plain == "steps"  # it adds rows to no other table
        store.add(table, name, measure() | {"runs": options.runs, "full": full})
        tables.rewrite(options.output, store.rows, _places(options))
    tables.rewrite(options.output, store.rows, _places(options))
    return 0


def cases(
    options: Options, platform: str
) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """What is to be measured: table, row, function."""
    from experiments.benchmark import (
        convolutions,
        copies,
        engines,
        machine,
        norms,
        profile,
        scaling,
        steps,
    )
    from experiments.method import factory

    runs, on_cpu = options.runs, platform == "cpu"
    if "machine" in options.only:
        yield "machine", "this machine", lambda: machine.machine_row(runs)
    if "engines" in options.only:
        sizes = [(8, 8, 4)] if on_cpu else [(8, 32, 4), (8, 8, 4), (20, 16, 4)]
        for depth, width, subnets in sizes:
            for dtype in ("float32",) if on_cpu else ("bfloat16", "float32"):
                yield (
                    "engines",
                    f"ResNet-{depth}, width {width}, K = {subnets}, {dtype}",
                    lambda d=depth, w=width, k=subnets, t=dtype: engines.engine_row(
                        d, w, k, t, runs
                    ),
                )
    if "profile" in options.only and on_cpu:
        for depth, width in ((8, 8), (20, 8), (8, 32), (8, 64)):
            yield (
                "profile",
                f"ResNet-{depth}, width {width}",
                lambda d=depth, w=width: profile.profile_row(d, w, runs),
            )
    if "convolutions" in options.only and on_cpu:
        few = ((32, 8), (16, 16), (8, 32), (32, 16), (16, 32), (8, 64), (32, 32))
        for size, channels in (*few, (16, 128), (8, 256)):
            yield (
                "convolutions",
                f"{size}×{size}×{channels}",
                lambda s=size, c=channels: convolutions.convolution_row(s, c, runs),
            )
    if "norms" in options.only:
        for size, channels in ((32, 8), (32, 16), (16, 32), (8, 64), (32, 64)):
            yield (
                "norms",
                f"{size}×{size}×{channels}",
                lambda s=size, c=channels: norms.norm_row(s, c, runs),
            )
    if "copies" in options.only:
        for name in copies.LAYOUTS:
            yield "copies", name, lambda n=name: copies.copy_row(n, runs)
    if "steps" in options.only:
        some = [(8, 8, k) for k in (1, 2, 4, 8)] + [(8, 16, 4), (20, 8, 4), (32, 8, 4)]
        some = some if on_cpu else [(8, 32, 4), (8, 8, 4), (20, 16, 4), (32, 16, 4)]
        every = [(d, w, k) for d in (8, 20, 32) for w in (8, 16) for k in (1, 2, 4, 8)]
        for depth, width, subnets in every if options.full else some:
            # As the experiments compute, and the type in the name where it is another.
            dtype = factory.precision(Network())
            yield (
                "steps",
                f"ResNet-{depth}, width {width}, K = {subnets}" + f", {dtype}" * (not on_cpu),
                lambda d=depth, w=width, k=subnets, t=dtype: steps.step_row(d, w, k, runs, t),
            )
    if "scaling" in options.only:
        for subnets in (1, 2, 4, 8):
            yield (
                "scaling",
                f"ResNet-8, width 8, K = {subnets}",
                lambda k=subnets: scaling.scaling_row(8, 8, k, runs),
            )


if __name__ == "__main__":
    sys.exit(main())
