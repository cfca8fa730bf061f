"""The tables, a module each. To add one, write a module here and a place in BENCHMARKS.md.

A module defines `rows(platform, full)`, which yields the name of each row with the function that
measures it in a number of runs, and `render(rows)`, which returns the measured rows as text.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

NAMES = tuple(module.name for module in pkgutil.iter_modules(__path__))

Rows = dict[str, dict[str, Any]]
"""The measured rows of a table, by name."""
Cases = Iterator[tuple[str, Callable[[int], dict[str, Any]]]]
"""The rows to measure: names, and functions of the number of runs."""


def load(name: str) -> Any:
    """Return the module of a table; it imports JAX."""
    return importlib.import_module(f"{__name__}.{name}")
