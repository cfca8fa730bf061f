"""Progress bars."""

import sys
from typing import Any


def bar(what: str, total: int, unit: str) -> Any:
    """Return a tqdm bar with rate and remaining time, on standard error.

    If that is not a terminal, such as a log file, it writes a line every 30 seconds, which tells a
    slow download from a dead one.
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
