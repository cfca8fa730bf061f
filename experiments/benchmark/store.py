"""The measured rows in one file, written after each."""

import datetime
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import jax

from experiments import markdown
from experiments.benchmark.tables import Rows
from experiments.run import provenance


class Store:
    """Rows by table and name, each with its date, its conditions and its number of runs.

    Rows of another machine, other versions or another number of runs do not count as measured; with
    `fresh`, neither do rows of earlier processes. They stay until they are measured again.
    """

    def __init__(self, path: Path, *, fresh: bool = False):
        self.path = path
        self.rows: dict[str, Rows] = json.loads(path.read_text()) if path.is_file() else {}
        self._stale = fresh
        self._added: set[tuple[str, str]] = set()

    def has(self, table: str, name: str, runs: int) -> bool:
        """Return whether the row has been measured here, in so many runs."""
        if self._stale and (table, name) not in self._added:
            return False
        row = self.rows.get(table, {}).get(name)
        return row is not None and row["on"] == conditions() and row["runs"] == runs

    def add(self, table: str, name: str, row: dict[str, Any]) -> None:
        """Keep a row; the file is replaced as a whole."""
        when = {"date": datetime.date.today().isoformat(), "commit": provenance.commit()}
        self.rows.setdefault(table, {})[name] = row | {"on": conditions()} | when
        self._added.add((table, name))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        markdown.write(self.path, json.dumps(self.rows, indent=1))


def conditions() -> dict[str, Any]:
    """Return what a figure depends on apart from the code."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": provenance.processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "versions": provenance.versions() | _torch(),
    }


def _torch() -> dict[str, str]:
    try:
        return {"torch": importlib.metadata.version("torch")}
    except importlib.metadata.PackageNotFoundError:
        return {}
