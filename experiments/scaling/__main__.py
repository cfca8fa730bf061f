"""Measure steps over links of several speeds, or write what follows from it.

    python -m experiments.scaling

Each process runs in a network namespace of its own (Linux, as root), on one core; a token bucket
limits what it sends. Bytes are those that the kernel counts at the link.
"""

import contextlib
import dataclasses
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from experiments.extras import needed
from experiments.scaling import links

PROGRAM = "python -m experiments.scaling"

with needed(PROGRAM, "experiments"):
    import tyro


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure a step of each kind of training, over links of several speeds."""

    depth: int = 8
    """Layers of the ResNet."""
    widths: tuple[int, ...] = (32, 64)
    """Its widths."""
    images: int = 32
    """Images a step and process, of the global network; a sub-network gets four times as many."""
    processes: int = 2
    """The number of processes. More than cores share them, so that only the bytes count."""
    rates: tuple[int, ...] = (0, 10_000, 1000, 100)
    """Speeds of the links in Mbit/s each way; 0 for no limit."""
    steps: int = 3
    """Steps that are timed of each kind, each time."""
    rounds: int = 4
    """How often all rates are tried; what else the machine does then slows all of them alike."""
    records: Path = Path("docs/study/scaling.json")
    """The file of what was measured."""
    report: bool = False
    """Measure nothing; write tables and picture from the records."""
    output: Path = Path("docs/scaling.md")
    """The document of --report."""


def main() -> int:
    """Run the command and return the exit code."""
    options = tyro.cli(Options, prog=PROGRAM)
    if options.report:
        with needed(PROGRAM, "experiments"):
            from experiments.scaling import report
        report.write(options.records, options.output)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # namespaces are deleted
    for width in options.widths:
        found = _measured(options, width)
        _keep(options.records, width, options.processes, found)
        for rate, kinds in found.items():
            for kind, each in kinds.items():
                seconds = statistics.median(each["seconds"])
                print(f"{width} {rate} {kind}: {each['bytes']} B, {seconds:.3f} s", flush=True)
    return 0


def _keep(records: Path, width: int, processes: int, found: dict[int, dict[str, Any]]) -> None:
    """Put what was measured into the records, in the place of an earlier measurement."""
    known = json.loads(records.read_text()) if records.is_file() else []
    same = {"width": width, "processes": processes}
    kept = [each for each in known if {name: each[name] for name in same} != same]
    new = [{**same, "rate": rate, "kinds": kinds} for rate, kinds in found.items()]
    lines = ",\n".join(json.dumps(each) for each in [*kept, *new])
    records.write_text(f"[\n{lines}\n]\n")


def _measured(options: Options, width: int) -> dict[int, dict[str, Any]]:
    """Return, by the rate, process 0's bytes a step and seconds of all steps of each kind."""
    found: dict[int, dict[str, Any]] = {rate: {} for rate in options.rates}
    with links.joined(options.processes), _started(options, width) as workers:
        for turn in range(options.rounds):
            for rate in options.rates:
                links.limit(options.processes, rate)
                for _, lines, _ in workers:
                    lines.write("go\n")
                    lines.flush()
                said = [_answer(out) for _, _, out in workers]
                print(f"width {width}, round {turn}, {rate} Mbit/s", file=sys.stderr, flush=True)
                for kind, each in said[0].items():
                    into = found[rate].setdefault(kind, {"bytes": each["bytes"]})
                    for name in ("seconds", "cpu_seconds"):
                        into.setdefault(name, []).extend(each[name])
        links.limit(options.processes, 0)
    return found


def _answer(out: IO[str]) -> dict[str, Any]:
    """Return a process's next answer; gloo prints lines of its own before it."""
    for line in out:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit("a process failed; its message is above")


@contextlib.contextmanager
def _started(
    options: Options, width: int
) -> Iterator[list[tuple[subprocess.Popen[str], IO[str], IO[str]]]]:
    """Start the processes, which are killed when the context ends."""
    settings = {
        "width": width,
        "coordinator": f"{links.host(0)}:29500",
        "count": options.processes,
        **{name: getattr(options, name) for name in ("depth", "images", "steps")},
    }
    command = [sys.executable, "-m", "experiments.scaling.worker", json.dumps(settings)]
    started = [
        subprocess.Popen(
            [*links.within(number), *command, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(options.processes)
    ]
    try:
        yield [(each, each.stdin, each.stdout) for each in started if each.stdin and each.stdout]
    finally:
        for each in started:
            each.kill()


if __name__ == "__main__":
    sys.exit(main())
