"""List runs, finished or not: `python -m experiments.runs`."""

import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from experiments.extras import BAD_INPUT, needed

PROGRAM = "python -m experiments.runs"

with needed(PROGRAM, "experiments"):
    import tyro
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from experiments.results.summary import percent
    from experiments.run.workdir import RESULTS, SETTINGS, is_run, metrics
    from experiments.settings import help

STAGES = {"subnets": "sub-networks", "finetune": "fine-tuning"}


def main(program: str = PROGRAM, args: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 0 done, 2 the folder holds no runs."""

    def runs(folder: Annotated[Path, tyro.conf.Positional] = Path("runs")) -> Path:
        """List the runs in a folder and below it.

        Args:
          folder: the folder; each run's workdir is in it.
        """
        return folder

    try:
        folder: Path = help.read(runs, program, args)
        found = sorted(path.parent for path in folder.rglob(SETTINGS) if is_run(path.parent))
        if not found:
            raise ValueError(f"no runs in {folder}; name another folder")
    except ValueError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    table = Table(box=None, header_style="bold")
    for name in ("run", "dataset"):
        table.add_column(name, overflow="fold")
    table.add_column("K", justify="right")
    table.add_column("state", overflow="fold")
    for name in ("sub-networks", "composed", "fine-tuned", "baseline"):
        table.add_column(name.replace("-", "-\n"), justify="right", no_wrap=True)
    for each in found:
        table.add_row(*map(Text, (str(each.relative_to(folder)), *row(each))))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def row(run: Path) -> Iterator[str]:
    """Yield what the table says of a run: data, K, state, and accuracies of a finished one."""
    settings, results = _read(run / SETTINGS), _read(run / RESULTS)
    yield str(results.get("dataset") or settings.get("dataset", "?"))
    yield str(settings.get("subnets", "?"))
    yield "finished" if results else state(run)
    try:
        each = results["subnets_phase"]["accuracy"]
        yield percent(sum(each) / len(each))
        yield from (percent(results[name]["accuracy"]) for name in ("composed", "finetune"))
        yield percent(results["baseline"]["accuracy"]) if results["baseline"]["epochs"] else "–"
    except (LookupError, TypeError, ValueError, ArithmeticError):
        pass  # unfinished, or damaged


def state(run: Path) -> str:
    """Return whether a process works on an unfinished run, and how far it is."""
    running = any(map(_alive, run.glob(".lock*.owner")))
    lines = [line for path in run.glob("metrics*.jsonl") for line in metrics(path)]
    timed = [line for line in lines if isinstance(line.get("time"), str) and "phase" in line]
    last = max(timed, key=lambda line: line["time"], default=None)
    at = "" if last is None else f", {STAGES.get(str(last['phase']), last['phase'])}"
    if last is not None and "epoch" in last:
        at += f" epoch {last['epoch']}"
    return ("running" if running else "stopped") + at


def _alive(owner: Path) -> bool:
    """Return whether the process that holds a lock lives; one on another machine is taken to."""
    try:
        found = re.match(r"process (\d+) on (\S+),", owner.read_text(errors="replace"))
    except OSError:  # released in between
        return False
    if found is None or found[2] != socket.gethostname():
        return found is not None
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
