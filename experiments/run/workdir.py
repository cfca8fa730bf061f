"""The folder of a run: its settings at the start, metrics during training, results at the end."""

import collections
import contextlib
import datetime
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from experiments.results.schema import Results
from experiments.settings.naming import PLACES, as_flag

SETTINGS, METRICS, RESULTS = "settings.json", "metrics.jsonl", "results.json"
OF = "settings"  # in the results
MODEL = "model"
CHECKPOINTS = "checkpoints"
_NAMES = {
    "": r"(settings|results)\.json|report\.(html|md|npz)|metrics(-(subnet|process)-\d+)?\.jsonl",
    MODEL: r"(subnets|composed|finetuned|baseline)\.safetensors|config\.json|README\.md",
    CHECKPOINTS: r"(subnets|subnet-\d+(-restart\d+)?|composed|finetune|baseline)(-process-\d+)?",
}
"""The names that a run writes, by their folders below the workdir."""
_MARKS = ("subnets", "seed", "subnet_epochs", "finetune_epochs")  # in the settings of every run


class WorkdirError(Exception):
    """The folder cannot hold this run; the message says why and what to do."""


class Metrics:
    """The file of metrics; each call writes a line with the time and the given fields.

    * `name`: the file's name.
    * `lines`: the number of lines of each stage, which a line has as its `phase`.
    * `listeners`: functions that are called with the fields of each line.
    """

    def __init__(self, path: Path, file: IO[bytes], say: Callable[[str], None]):
        """Continue a file that is open for reading and appending, without a buffer.

        A last line without an end is of a process or a machine that died while it wrote it. It is
        deleted. `say` gets a message if the file cannot be written.
        """
        self.name = path.name
        self.listeners: list[Callable[..., None]] = []
        self._file = file
        self._say = say
        self._failed = False
        self._keep([line for line in self._read() if line.endswith(b"\n")])

    def __call__(self, **fields: Any) -> None:
        """Write a line, and tell the listeners."""
        for listen in self.listeners:
            listen(**fields)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = (_dumps({"time": now} | fields) + "\n").encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.lines[fields.get("phase")] += 1
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            if not self._failed:
                self._say(f"{self.name} lacks lines, training continues: {error.strerror}")
            self._failed = True

    def cut(self, stage: str, step: int) -> None:
        """Delete a stage's lines after a step, which a run that continues from there repeats."""

        def kept(line: bytes) -> bool:
            of, at = _stage_and_step(line)
            return of != stage or at <= step

        self._keep([line for line in self._read() if kept(line)])

    def _read(self) -> list[bytes]:
        self._file.seek(0)
        return self._file.readlines()

    def _keep(self, lines: list[bytes]) -> None:
        """Reduce the file to these lines of it."""
        pairs = enumerate(zip(lines, self._read(), strict=False))
        first = next((place for place, (new, old) in pairs if new != old), len(lines))
        self._file.truncate(sum(map(len, lines[:first])))
        self._file.write(b"".join(lines[first:]))
        self.lines = collections.Counter(_stage_and_step(line)[0] for line in lines)


def _stage_and_step(line: bytes) -> tuple[str | None, int]:
    """Return the stage and the step of a line; (None, 0) if it is damaged."""
    try:
        entry = json.loads(line)
        return entry["phase"], int(entry.get("step", 0))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, 0


def finished(workdir: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> Results | None:
    """Return the results if the folder holds a finished run; None if it can start or continue one.

    Args:
      workdir: the folder, which need not exist; it is not changed.
      settings: plain values by the names of their flags.
      fresh: whether to ignore a run that the folder holds.

    Raises:
      WorkdirError: the folder holds another run, or files that a run writes but not its settings.
    """
    # Listed first: a process beside this one writes the settings before anything else.
    there = [path for path in _written(workdir) if path.name[0] != "." and path.name != SETTINGS]
    try:
        has_settings = (workdir / SETTINGS).is_file()
        if workdir.exists() and not workdir.is_dir():
            raise FileExistsError
    except OSError as error:  # such as a name that is too long
        raise unwritable(workdir, error) from None
    if not has_settings:
        # Checkpoints may be copied from another machine: they name their run, and are compared.
        foreign = [path for path in there if fresh or path.parent.name != CHECKPOINTS]
        if foreign:
            names = [path.relative_to(workdir).as_posix() for path in foreign]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise WorkdirError(
                f"the workdir {workdir} holds {', '.join(names[:3])}{more} but not the file "
                f"{SETTINGS}, so their run is unknown. Give another --workdir or move them away"
            )
        return None
    move = "Give another --workdir, or move that file away"
    of_run = read(workdir / SETTINGS, move) or {}
    if not _is_of_run(of_run):
        raise WorkdirError(f"{workdir / SETTINGS} holds no settings of a run of dcjax's. {move}")
    if not fresh:
        if difference := differences(of_run, settings):
            raise WorkdirError(
                f"the workdir {workdir} holds a run with other settings:\n  "
                + "\n  ".join(difference)
                + "\nGive another --workdir, repeat those settings, or start again with --fresh"
            )
        again = "Delete it: the same command writes it again from the checkpoints"
        if (results := read(workdir / RESULTS, again)) is not None:
            of = results.pop(OF, None)
            if not isinstance(of, dict):
                raise WorkdirError(f"{workdir / RESULTS} does not name its settings. {again}")
            if difference := differences(of, settings):
                raise WorkdirError(
                    f"{workdir / RESULTS} has the results of a run with other settings:\n  "
                    + "\n  ".join(difference)
                    + f"\n{again}"
                )
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
    if error.filename and Path(error.filename) != workdir and os.path.isdir(workdir):
        why = f"{error.filename}: {why}"
    return WorkdirError(f"the workdir {workdir} cannot be written: {why}. Give another --workdir")


@contextlib.contextmanager
def opened(
    workdir: Path,
    settings: Mapping[str, Any],
    say: Callable[[str], None],
    part: str = "",
) -> Iterator[Metrics]:
    """Begin or continue a run in the folder: write its settings, and open its metrics.

    Args:
      workdir: created if missing.
      settings: plain values by the names of their flags.
      say: gets a message if the metrics cannot be written later.
      part: an end of the metrics' name, where other processes write theirs into the same folder.

    Raises:
      WorkdirError: the files cannot be written.
    """
    path = workdir / METRICS.replace(".", f"{part}.")
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            _write(workdir / SETTINGS, settings)
            _refuse_other_than_file(path)
            metrics = Metrics(path, stack.enter_context(open(path, "a+b", buffering=0)), say)
        except OSError as error:
            raise unwritable(workdir, error) from None
        yield metrics


def is_run(workdir: Path) -> bool:
    """Return whether the folder holds the settings of a run."""
    try:
        return _is_of_run(read(workdir / SETTINGS) or {})
    except WorkdirError:
        return False


def _is_of_run(settings: Mapping[str, Any]) -> bool:
    return all(name in settings for name in _MARKS)


def _written(workdir: Path) -> list[Path]:
    """Return what the folder holds under names that a run writes, and what killed writes left."""
    found: list[Path] = []
    for folder, names in _NAMES.items():
        with contextlib.suppress(OSError):  # it is not there
            paths = sorted((workdir / folder).iterdir())
            pattern = re.compile(rf"{names}|\.({names})\.\w+\.tmp")
            found += [path for path in paths if pattern.fullmatch(path.name)]
    return found


def clear(workdir: Path) -> None:
    """Delete from a run's folder what has the names that a run writes, and nothing else."""
    for path in _written(workdir):
        with contextlib.suppress(OSError):
            if path.parent.name == CHECKPOINTS:
                shutil.rmtree(path)
            else:
                path.unlink()
    for folder in (MODEL, CHECKPOINTS):
        with contextlib.suppress(OSError):  # it is not there, or holds other files
            (workdir / folder).rmdir()


def without_model(workdir: Path) -> str:
    """Say what the model of a finished run lacks, and how to get it back; "" if it is whole."""
    with contextlib.suppress(WorkdirError):
        results = read(workdir / RESULTS) or {}
        kept = ["subnets", "composed", "finetuned"]
        baseline = results.get("baseline")
        if isinstance(baseline, dict) and baseline.get("epochs"):
            kept.append("baseline")
        names = ["config.json", *(f"{name}.safetensors" for name in kept)]
        lost = [name for name in names if not (workdir / MODEL / name).is_file()]
        if results and lost:
            remedy = f"delete {workdir / RESULTS}, and its command writes it from the checkpoints"
            if not any((workdir / CHECKPOINTS).glob("*/*")):
                remedy = "its checkpoints are lost too; its command with --fresh trains it again"
            return f"{workdir / MODEL} lacks {', '.join(lost)}: {remedy}"
    return ""


def finish(workdir: Path, results: Results, settings: Mapping[str, Any]) -> None:
    """Write a run's results into its folder, and the settings that they are of, but for places."""
    of = {name: value for name, value in settings.items() if name not in PLACES}
    _write(workdir / RESULTS, {**results, OF: of})


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
    from dcjax import method  # imports JAX

    return json.dumps(method.json_values(values), indent=indent, allow_nan=False)


def read(path: Path, remedy: str = "Start the run again") -> dict[str, Any] | None:
    """Return the JSON object in a file; None if the file does not exist.

    Raises:
      WorkdirError: it cannot be read; the message ends with the remedy.
    """
    try:
        _refuse_other_than_file(path)
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, got {type(values).__name__}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, PermissionError):
            remedy = "Make it readable"
        raise WorkdirError(f"{path} cannot be read: {error}. {remedy}") from None
    return values


def metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of metrics, without damaged ones."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def _refuse_other_than_file(path: Path) -> None:
    """Raise an error for a FIFO, which would be waited for, or a device."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a FIFO or a device", str(path))
