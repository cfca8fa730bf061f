"""What a run says while it goes: bars with ETA on a terminal, a line an epoch elsewhere."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Voice(NamedTuple):
    """How a run talks.

    * `say`: a line, above the bar if there is one.
    * `bar`: `with bar(name, steps) as advance`: `advance(step)` says how many steps are done.
    """

    say: Callable[[str], None]
    bar: Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]


def voice(console: Console) -> Voice:
    """A voice on a console; bars only if it is a terminal, nothing at all if it is quiet."""

    def say(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    @contextlib.contextmanager
    def bar(name: str, steps: int) -> Iterator[Callable[[int], None]]:
        columns = (
            TextColumn("{task.description:14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        shown = console.is_terminal and not console.quiet
        with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
            task = progress.add_task(name, total=steps)
            yield lambda step: progress.update(task, completed=step)

    return Voice(say, bar)
