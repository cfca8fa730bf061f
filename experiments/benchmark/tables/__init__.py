"""The tables, a module each. To add one, write a module here and a place in BENCHMARKS.md.

A module defines `rows(platform)`, which returns the arguments of each row by its name;
`measure(*arguments, runs)`, which measures a row; and `render(rows)`, which returns the table.
"""

import importlib
import pkgutil
from typing import Any

NAMES = tuple(module.name for module in pkgutil.iter_modules(__path__))

Cases = dict[str, tuple[Any, ...]]
"""The arguments of each row that can be measured, by its name."""
Rows = dict[str, dict[str, Any]]
"""The measured rows of a table, by name."""


def load(name: str) -> Any:
    """Return the module of a table; it imports JAX."""
    return importlib.import_module(f"{__name__}.{name}")
