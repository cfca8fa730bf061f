"""The folder of a run: its settings at the start, metrics as it goes, results at the end."""

import contextlib
import datetime
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from experiments.settings.flags import PLACES, as_flag

SETTINGS, METRICS, RESULTS = "settings.json", "metrics.jsonl", "results.json"


class WorkdirError(Exception):
    """The folder cannot hold this run; the message says why and what to do."""


class Metrics:
    """The file of metrics; called, it writes a line: the time, and the fields given by their names.

    A run that goes on has lines there of steps that it takes again: `rewind` cuts them off. A
    position is the file's name and a number of bytes; one of another file says nothing of this one.
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
        """Its end."""
        return [self._name, self._file.tell()]

    def pass_over(self, position: Sequence[Any]) -> None:
        """What is before that position stays."""
        if position[0] == self._name:
            self._passed = position[1]

    def rewind(self, position: Sequence[Any] | None = None) -> None:
        """Cut off what is behind that position, or behind the last that was passed over."""
        own = position is not None and position[0] == self._name
        target = position[1] if position is not None and own else self._passed
        if target < self._file.seek(0, os.SEEK_END):
            self._file.truncate(target)
            self._file.seek(0, os.SEEK_END)


def finished(
    workdir: Path, settings: Mapping[str, Any], *, fresh: bool = False
) -> dict[str, Any] | None:
    """The results of the run of these settings that the folder holds; None if it can take the run.

    An unfinished run of the same settings is no obstacle: it goes on.

    Args:
      workdir: the folder; need not exist, and is left as it is.
      settings: plain values by the names of their flags.
      fresh: whether a run that the folder holds, of any settings, does not count.

    Raises:
      WorkdirError: the folder holds another run, or cannot be written.
    """
    if not (workdir / SETTINGS).is_file():
        _refuse_strangers(workdir)
    elif fresh:
        pass
    elif difference := differences(_read(workdir / SETTINGS) or {}, settings):
        raise WorkdirError(
            f"the workdir {workdir} holds a run of other settings:\n"
            + "\n".join(f"  {line}" for line in difference)
            + "\nGive another --workdir, repeat those settings, or start anew with --fresh"
        )
    else:
        results = _read(workdir / RESULTS)
        if results is not None:
            return results
    probe(workdir)
    return None


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The settings in which two runs differ, a line each with both values.

    >>> differences({"seed": 0, "width": 32}, {"seed": 1, "width": 32})
    ['--seed: 0 there, 1 here']
    """
    names = [name for name in {**here, **there} if name not in PLACES]
    return [
        f"{as_flag(name)}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in names
        if name not in there or name not in here or there[name] != here[name]
    ]


def probe(workdir: Path) -> None:
    """Make sure that the folder can be made and written, by doing both; leaves no trace.

    Permission bits say too little (root, read-only mounts, quotas), so a file is really written.
    """
    made: list[Path] = []
    try:
        made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir) as file:
            file.write(b"x")
    except OSError as error:
        raise unwritable(workdir, error) from None
    finally:
        for folder in made:  # the deepest first; one that another process has filled stays
            with contextlib.suppress(OSError):
                folder.rmdir()


def unwritable(workdir: Path, error: OSError) -> WorkdirError:
    """The error that says so."""
    why = "it is a file" if isinstance(error, FileExistsError) else error.strerror
    return WorkdirError(
        f"the workdir {workdir} cannot be written: {why}. Give a folder of your own with --workdir"
    )


@contextlib.contextmanager
def opened(
    workdir: Path, settings: Mapping[str, Any], member: int | None = None
) -> Iterator[Metrics]:
    """Begin a run in the folder, or go on: leave its settings, and give what logs metrics.

    Args:
      workdir: made where it is missing.
      settings: plain values by the names of their flags.
      member: the only sub-network to be trained, whose metrics have a file of their own.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    _write(workdir / SETTINGS, settings)
    name = METRICS if member is None else f"metrics-subnet-{member}.jsonl"
    with open(workdir / name, "a", encoding="utf-8") as file:
        yield Metrics(file)


def clear(workdir: Path) -> None:
    """Delete what a run has left in its folder, and nothing else."""
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    parts = workdir.glob(".*.json.*.part")
    for file in (workdir / RESULTS, workdir / SETTINGS, *workdir.glob("metrics*.jsonl"), *parts):
        file.unlink(missing_ok=True)


def finish(workdir: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Leave a run's results in its folder, and give them as they stand there."""
    _write(workdir / RESULTS, results)
    return _read(workdir / RESULTS) or {}


def plain(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results as they would stand in their file."""
    return json.loads(_dumps(results))


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON to a file that appears whole or not at all."""
    text = _dumps(values, indent=2) + "\n"
    # Sub-networks that are trained by processes of their own leave the same settings at once.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _dumps(values: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(_strict(values), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:
    """The value with null for what JSON has no number for: nan and infinity."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{path} cannot be read: {error}. {_remedy(path)}") from None
    if not isinstance(values, dict):
        raise WorkdirError(
            f"{path}: expected a JSON object, got {type(values).__name__}. {_remedy(path)}"
        )
    return values


def _remedy(damaged: Path) -> str:
    if damaged.name == RESULTS:
        return "Delete that file: the same command makes it again from the checkpoints"
    return "Give another --workdir, or --fresh to delete what it holds and start anew"


def _refuse_strangers(workdir: Path) -> None:
    """Never write over files of these names that something else has left."""
    strangers = [name for name in (METRICS, RESULTS) if os.path.lexists(workdir / name)]
    if strangers:
        raise WorkdirError(
            f"the workdir {workdir} holds {' and '.join(strangers)} without {SETTINGS}, which says "
            f"what made them. Give another --workdir or move them away"
        )
