"""The measured rows of a table: kept in a file after each, and published in the document."""

import datetime
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dcjax import method
from experiments import markdown
from experiments.benchmark.tables import Rows
from experiments.run import provenance


class Measured(NamedTuple):
    """The rows of one table, which were all measured in the same conditions."""

    conditions: dict[str, Any]
    rows: Rows


def begin(results: Path, table: str, runs: int) -> Measured:
    """Return the rows of the table that were measured in the present conditions."""
    here = conditions(runs)
    there = _read(results).get(table)
    return Measured(here, there["rows"] if there and there["conditions"] == here else {})


def keep(results: Path, table: str, measured: Measured) -> None:
    """Keep the table's rows; the file is replaced as a whole."""
    results.parent.mkdir(parents=True, exist_ok=True)
    markdown.write(results, json.dumps(_read(results) | {table: measured._asdict()}, indent=1))


def _read(results: Path) -> dict[str, Any]:
    return json.loads(results.read_text()) if results.is_file() else {}


def conditions(runs: int) -> dict[str, Any]:
    """Return the conditions on which a figure depends."""
    versions = {name: v for name, v in method.versions().items() if name != "dcjax"}
    # Its installed version, without importing it.
    if installed := [*importlib.metadata.distributions(name="torch")]:
        versions["torch"] = installed[0].version
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": jax.devices()[0].device_kind,
        "processor": f"{provenance.processor()}, {cores} cores",
        "versions": versions,
        "commit": provenance.commit(),
        "runs": runs,
    }


def publish(document: Path, place: str, command: str, measured: Measured, table: str) -> None:
    """Put the command, the conditions and the table between `<!-- PLACE -->` and `<!-- end -->`."""
    on = measured.conditions
    versions = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    said = f"{on['device']}: {on['processor']}; {versions}; commit {on['commit'] or 'unknown'}"
    body = f"    {command}\n\n{said}; {datetime.date.today()}.\n\n{table}"
    text = document.read_text()
    if f"<!-- {place} -->" not in text:  # the table's first time on such an accelerator
        text += f"\n## {place.capitalize()}\n\n<!-- {place} -->\n<!-- end -->\n"
    markdown.write(document, markdown.put(text, place, body))
