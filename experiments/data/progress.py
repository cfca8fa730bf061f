"""Progress bars."""

import sys
from typing import Any


def bar(what: str, total: int, unit: str) -> Any:
    """A tqdm bar with rate and remaining time, on standard error.

    On a terminal it moves. Elsewhere, as in a log file, what takes long leaves a line every 30
    seconds, so that a slow download can be told from a dead one.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        desc=what,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        delay=0 if terminal else 30,
        mininterval=0.1 if terminal else 30,
        leave=False,
    )
