"""The messages of a run: progress bars on a terminal, and lines anywhere."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.text import Text


class Voice(NamedTuple):
    """Two functions.

    * `say(line)` prints a line, above the bar if there is one.
    * `with bar(name, steps) as advance` shows a bar; `advance(step)` sets the steps that are done.
    """

    say: Callable[[str], None]
    bar: Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]


def replace_unknown_characters() -> None:
    """Print `?` for characters that the streams' encoding lacks, such as ≤ in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def voice(console: Console) -> Voice:
    """Return the voice on a console: bars only on a terminal, nothing if it is quiet."""

    def say(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    @contextlib.contextmanager
    def bar(name: str, steps: int) -> Iterator[Callable[[int], None]]:
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        # FORCE_COLOR makes rich take a file for a terminal.
        redirected = console.file is sys.stderr and not sys.stderr.isatty()
        shown = console.is_terminal and not console.quiet and not redirected
        with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
            task = progress.add_task(name, total=steps)
            yield lambda step: progress.update(task, completed=step)

    return Voice(say, bar)
