"""The folder of a run: its settings at the start, metrics during training, results at the end."""

import contextlib
import datetime
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from experiments.results.schema import Results
from experiments.settings.naming import PLACES, as_flag

SETTINGS, METRICS, RESULTS = "settings.json", "metrics.jsonl", "results.json"


class WorkdirError(Exception):
    """The folder cannot hold this run; the message says why and what to do."""


class Metrics:
    """The file of metrics; each call writes a line with the time and the given fields.

    A run that continues repeats steps that already have lines, which `rewind` cuts off. A position
    is the file's name and a number of bytes.
    """

    def __init__(self, file: IO[str]):
        self._file = file
        self._name = Path(file.name).name
        self._passed = 0

    def __call__(self, **fields: Any) -> None:
        """Write a line."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._file.write(_dumps({"time": now} | fields) + "\n")
        self._file.flush()  # a run that dies leaves all that it measured

    def position(self) -> list[Any]:
        """Return the position of the file's end."""
        return [self._name, self._file.tell()]

    def pass_over(self, position: Sequence[Any]) -> None:
        """Keep the lines before that position; ignore a position in another file."""
        if position[0] == self._name:
            self._passed = position[1]

    def rewind(self) -> None:
        """Cut off the lines after the position passed over last."""
        end = self._file.seek(0, os.SEEK_END)
        self._file.truncate(min(self._passed, end))
        self._file.seek(0, os.SEEK_END)


def finished(workdir: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> Results | None:
    """Return the results if the folder holds a finished run; None if it can start or continue one.

    Args:
      workdir: the folder, which need not exist; it is not changed.
      settings: plain values by the names of their flags.
      fresh: whether to ignore a run that the folder holds.

    Raises:
      WorkdirError: the folder holds another run.
    """
    try:
        has_settings = (workdir / SETTINGS).is_file()
        if workdir.exists() and not workdir.is_dir():
            raise FileExistsError
    except OSError as error:  # such as a name that is too long
        raise unwritable(workdir, error) from None
    if not has_settings:
        foreign = [name for name in (METRICS, RESULTS) if os.path.lexists(workdir / name)]
        if foreign:
            raise WorkdirError(
                f"the workdir {workdir} holds {' and '.join(foreign)} without {SETTINGS}, so they "
                "are not from a run. Give another --workdir or move them away"
            )
    elif not fresh:
        if difference := differences(_read(workdir / SETTINGS) or {}, settings):
            raise WorkdirError(
                f"the workdir {workdir} holds a run with other settings:\n  "
                + "\n  ".join(difference)
                + "\nGive another --workdir, repeat those settings, or start again with --fresh"
            )
        if (results := _read(workdir / RESULTS)) is not None:
            return cast(Results, results)
    return None


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the settings in which two runs differ, a line each with both values.

    >>> differences({"seed": 0, "width": 32}, {"seed": 1, "width": 32})
    ['--seed: 0 there, 1 here']
    """
    names = [name for name in {**here, **there} if name not in PLACES]
    return [
        f"{as_flag(name)}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in names
        if name not in there or name not in here or there[name] != here[name]
    ]


def unwritable(workdir: Path, error: OSError) -> WorkdirError:
    """Return the error for a folder that cannot be written."""
    why = "it is a file" if isinstance(error, FileExistsError) else error.strerror
    return WorkdirError(f"the workdir {workdir} cannot be written: {why}. Give another --workdir")


@contextlib.contextmanager
def opened(
    workdir: Path, settings: Mapping[str, Any], member: int | None = None
) -> Iterator[Metrics]:
    """Begin or continue a run in the folder: write its settings, and open its metrics.

    Args:
      workdir: created if missing.
      settings: plain values by the names of their flags.
      member: the only sub-network to train, whose metrics have a separate file; None for all.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    _write(workdir / SETTINGS, settings)
    name = METRICS if member is None else f"metrics-subnet-{member}.jsonl"
    with open(workdir / name, "a", encoding="utf-8") as file:
        yield Metrics(file)


def clear(workdir: Path) -> None:
    """Delete the files of a run from its folder, and nothing else."""
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    parts = workdir.glob(".*.json.*.tmp")
    for file in (workdir / RESULTS, workdir / SETTINGS, *workdir.glob("metrics*.jsonl"), *parts):
        file.unlink(missing_ok=True)


def finish(workdir: Path, results: Results) -> None:
    """Write a run's results into its folder."""
    _write(workdir / RESULTS, results)


def plain(results: Results) -> Results:
    """Return results as they are read back from their file: None for NaN and infinity."""
    return json.loads(_dumps(results))


def _write(path: Path, values: Mapping[str, Any]) -> None:
    from dcjax.atomic import replacing  # imports JAX

    text = _dumps(values, indent=2) + "\n"
    # Processes that train one sub-network each write the same settings at the same time.
    with replacing(path) as file:
        file.write(text.encode())


def _dumps(values: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(_strict(values), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if the file does not exist."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, got {type(values).__name__}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise WorkdirError(
            f"{path} cannot be read: {error}. Give another --workdir, or --fresh to start again"
        ) from None
    return values
