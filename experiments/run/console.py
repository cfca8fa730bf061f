"""The voice of a run: a table that lives on a terminal, and lines anywhere."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from statistics import fmean
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.results.units import clock, percent, wrapped

LISTED = 4
"""Up to this many sub-networks have a row each; of more, the mean and the range are shown."""


class Expected(NamedTuple):
    """A stage that is to be trained: its title, epochs, and operations an epoch."""

    title: str
    epochs: int
    operations: float


class Voice:
    """Speaks to the person who runs a command: lines, and on a terminal a table of the stages."""

    def __init__(self, console: Console):
        self._console = console
        # FORCE_COLOR makes rich take a file for a terminal.
        redirected = console.file is sys.stderr and not sys.stderr.isatty()
        self._terminal = console.is_terminal and not console.quiet and not redirected
        self._table: _Stages | None = None

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one; a terminal's width cuts no number."""
        text = wrapped(line, self._console.width) if self._terminal else line
        with contextlib.suppress(OSError):  # a log on a full disk, which must not end a training
            self._console.print(Text(text), soft_wrap=True)

    def progress(self, line: str) -> None:
        """Print a line where no table shows the same."""
        if self._table is None:
            self.say(line)

    @contextlib.contextmanager
    def living(self, stages: Mapping[str, Expected], memory: Callable[[], int]) -> Iterator[None]:
        """Show a table while the context lasts, if this is a terminal.

        Args:
          stages: those to be trained, by their names in the metrics.
          memory: returns the bytes in use.
        """
        if not self._terminal:
            yield
            return
        self._table = _Stages(stages, memory)
        live = Live(
            get_renderable=self._table.shown,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            vertical_overflow="crop",
        )
        try:
            with live:
                yield
        finally:
            self._table = None

    @contextlib.contextmanager
    def bar(self, title: str, steps: int) -> Iterator[Callable[[int], None]]:
        """Give the function that sets how many steps of a stage are done."""
        if self._table is None:
            yield lambda step: None
            return
        stage = self._table.begin(title, steps)
        yield stage.advance
        stage.finished = True

    def entry(self, **fields: Any) -> None:
        """Show the fields of a line of metrics in the table."""
        if self._table is not None and "epoch" in fields:
            self._table.entry(fields)


def replace_unknown_characters() -> None:
    """Print `?` for characters that the streams' encoding lacks, such as ≤ in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class _Stage:
    """How far a stage is; seconds are those of training, which stand still in evaluations."""

    def __init__(self, expected: Expected):
        self.title, self.epochs, self.operations = expected
        self.steps = self.step = self._first = 0
        self.epoch = 0.0
        self.losses: Sequence[float] = ()
        self.accuracies: Sequence[float] = ()
        self.finished = expected.epochs == 0
        self._before = self._began = 0.0  # seconds until the last entry, and when it was
        self._now = 0.0
        self._start = 0.0

    def begin(self, steps: int) -> None:
        self.steps = steps
        self._first = self.step
        self._start = self._before
        self._began = self._now = time.perf_counter()

    def advance(self, step: int) -> None:
        self.step, self._now = step, time.perf_counter()

    def entry(self, fields: Mapping[str, Any]) -> None:
        self.epoch, self._before = fields["epoch"], fields["seconds"]
        self.step = fields.get("step", self.step)
        self.losses = _listed(fields.get("loss")) or self.losses
        self.accuracies = _listed(fields.get("accuracy"))
        self._began = self._now = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + self._now - self._began

    @property
    def left(self) -> float | None:
        """The seconds left; None before the first step."""
        done = self.step - self._first
        if self.finished:
            return 0.0
        return (self.seconds - self._start) / done * (self.steps - self.step) if done > 0 else None

    @property
    def speed(self) -> float | None:
        """The operations a second; None before the first step."""
        done = (self.step - self._first) / self.steps if self.steps else 0
        spent = self.seconds - self._start
        return done * self.epochs * self.operations / spent if done > 0 and spent > 0 else None


class _Stages:
    """The table of all stages."""

    def __init__(self, stages: Mapping[str, Expected], memory: Callable[[], int]):
        self._stages = {name: _Stage(expected) for name, expected in stages.items()}
        self._current: _Stage | None = None
        self._memory = memory

    def begin(self, title: str, steps: int) -> _Stage:
        known = (stage for stage in self._stages.values() if stage.title == title)
        stage = next(known, None)
        if stage is None:  # one sub-network by itself, or again
            stage = self._stages[title] = _Stage(Expected(title, 1, 0.0))
        stage.begin(steps)
        self._current = stage
        return stage

    def entry(self, fields: Mapping[str, Any]) -> None:
        stage = self._stages.get(fields["phase"], self._current)
        if stage is not None:
            stage.entry(fields)

    def shown(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("stage", no_wrap=True)
        for name in ("epoch", "loss", "accuracy", "time", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for stage in self._stages.values():
            for row in _rows(stage):
                table.add_row(*row)
        stage = self._current
        parts: list[Any] = [table]
        if stage is not None and not stage.finished:
            bar = Table.grid()  # a line of its own
            bar.add_row(ProgressBar(total=stage.steps, completed=stage.step, width=56))
            parts.append(bar)
        left = self._left()
        whole = "" if left is None else f"the whole run: about {clock(left)} of training left, "
        return Group(*parts, Text(f"{whole}memory {self._memory() / 2**30:.1f} GiB"))

    def _left(self) -> float | None:
        """Estimate the seconds of all stages: those not begun by their operations."""
        speeds = [stage.speed for stage in self._stages.values() if stage.speed]
        if not speeds:
            return None
        total = 0.0
        for stage in self._stages.values():
            left = stage.left
            total += stage.epochs * stage.operations / speeds[-1] if left is None else left
        return total


def _rows(stage: _Stage) -> Iterator[tuple[str, ...]]:
    losses, accuracies = stage.losses, stage.accuracies

    def cells(of: Callable[[Sequence[float]], float]) -> tuple[str, str]:
        loss = f"{of(losses):.3f}" if losses else ""
        return loss, percent(of(accuracies)) if accuracies else ""

    yield (
        stage.title,
        f"{stage.epoch:.4g}/{stage.epochs}",
        *cells(fmean),
        clock(stage.seconds) if stage.steps else "",
        clock(stage.left) if stage.left else "",
    )
    many = max(len(losses), len(accuracies))
    parts: dict[str, Callable[[Sequence[float]], float]] = {"lowest": min, "highest": max}
    if many <= LISTED:
        parts = {f"sub-network {k}": itemgetter(k) for k in range(many)} if many > 1 else {}
    for name, of in parts.items():
        yield f"  {name}", "", *cells(of), "", ""


def _listed(value: float | list[float] | None) -> list[float]:
    """Return the values of one network, or of several, as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
