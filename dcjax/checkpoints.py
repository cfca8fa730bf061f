"""Checkpoints that Orbax writes and commits atomically, and that are checked when they are read.

Step 12 is saved in the folder `00000012`; if it is saved again, in `00000012.1`, and so on. The
highest number counts. Orbax loads flipped bits without an error, so it gets one array: the bytes of
the .npz file that `dcjax.save` would write, which has a SHA-256 of every leaf. Under several
processes the folder holds that file itself, because Orbax's saves wait for all of them.
"""

import concurrent.futures
import contextlib
import io
import operator
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dcjax._files import formats, manifest

# Names of checkpoints: the step, the number, and the suffix that a killed save or deletion leaves.
_NAME = re.compile(r"(\d{8}|[1-9]\d{8,})(?:\.(\d+))?(\.(?:deleted|orbax-check).*)?", re.ASCII)

_FILE = "file.npz"


class CheckpointError(Exception):
    """A checkpoint cannot be read or written: `file` says which, `reason` why."""

    def __init__(self, file: Path, reason: str):
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class Checkpoint(NamedTuple):
    """A saved step: its number, the caller's record, and the leaves by their paths in the tree."""

    step: int
    record: dict[str, Any]
    leaves: dict[str, Any]

    def to_bytes(self) -> bytes:
        """Return the bytes of its file, from which `from_bytes` makes it again."""
        file = io.BytesIO()
        manifest.write(file, formats.NPZ, self.leaves, step=self.step, record=self.record)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Checkpoint":
        """Return the checkpoint of these bytes.

        Raises:
          Exception: of any type if they have changed.

        >>> Checkpoint.from_bytes(Checkpoint(3, {"a": 1}, {}).to_bytes())
        Checkpoint(step=3, record={'a': 1}, leaves={})
        """
        leaves, content = manifest.read(io.BytesIO(data), formats.NPZ)
        return cls(content["step"], content["record"], leaves)

    def into(self, like: PyTree) -> PyTree:
        """Return the saved leaves in the structure of `like`, a pytree of equal shapes and dtypes.

        They are JAX arrays; NumPy's where JAX would narrow them (64 bits without `jax_enable_x64`).

        Raises:
          ValueError: the paths, shapes or dtypes differ; lists every difference.
        """
        paths, structure = jax.tree_util.tree_flatten_with_path(like)
        here = {jax.tree_util.keystr(path): _kind(leaf) for path, leaf in paths}
        there = {name: _kind(leaf) for name, leaf in self.leaves.items()}
        wrong = [
            f"{name}: saved {there.get(name, 'nothing')}, expected {here.get(name, 'nothing')}"
            for name in {**here, **there}
            if there.get(name) != here.get(name)
        ]
        if wrong:
            head = f"the checkpoint of step {self.step} is of another tree:\n  "
            raise ValueError(head + "\n  ".join(wrong))
        return structure.unflatten([self.leaves[name] for name in here])


class Checkpoints:
    """The checkpoints of one training run in a folder.

    Save within `with Checkpoints(folder) as checkpoints:`, whose end waits until everything is
    written. If its body raises, a failed save is added to that error as a note.

    Args:
      folder: created if missing. Names of eight or more digits in it belong to the checkpoints.
      keep: how many to keep of the step just saved and those before it; damaged ones that `newest`
        found do not count. Later steps stay until a run that went back reaches them. An old
        checkpoint is deleted only after a newer one is committed.
      on_failure: called with the step and the error if a checkpoint could not be written, so that
        training can continue; without it the next `save` or `wait` raises the error.
      writer: needed under `jax.distributed` only: the number of the process whose saves are
        written; those of the others do nothing. 0 where all save the same state, and
        `jax.process_index()` where each has a folder of its own. No process waits for another.

    Raises:
      ValueError: `keep` is below 1, or there are several processes and no `writer`.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=2) as checkpoints:
    ...     for step in (1, 2, 3):
    ...         checkpoints.save(step, {"w": step * jnp.ones(2)}, {"seed": 0})
    ...     checkpoints.wait()
    ...     checkpoints.steps(), checkpoints.load().into({"w": jnp.ones(2)})
    ([2, 3], {'w': Array([3., 3.], dtype=float32)})
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 2,
        on_failure: Callable[[int, Exception], None] | None = None,
        writer: int | None = None,
    ):
        if keep < 1:
            raise ValueError(f"expected keep >= 1, got {keep}")
        if writer is None and _processes() > 1:
            raise ValueError(
                f"{_processes()} processes: give writer=0 where all save the same state, or "
                "writer=jax.process_index() where each has a folder of its own"
            )
        self._writes = writer is None or writer == jax.process_index()
        if not os.fspath(folder):
            raise ValueError("expected a folder, got an empty path")
        self.folder = Path(folder).expanduser().absolute()
        self.keep = keep
        self._on_failure = on_failure or _raise
        self._writer: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        self._damaged: set[Path] = set()
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Checkpoints":
        # A separate thread, because Orbax would interfere with an event loop in the caller's.
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            if self._writer is not None:
                self._writer.shutdown()
            self._writer = None

    def save(self, step: int, tree: PyTree, record: Mapping[str, Any] | None = None) -> None:
        """Copy the tree to the host, wait for an unfinished save, and save in the background.

        Args:
          step: a number >= 0; a checkpoint of the same step is replaced.
          tree: a pytree of arrays or typed random keys.
          record: JSON values to save with it.

        Raises:
          CheckpointError: the save before failed, without an `on_failure`; this one is not begun.
          TypeError: leaves are not arrays, lists every one; or the record has other values.
          ValueError: the step is negative, or two leaves have the same path.
          RuntimeError: called outside the context.
        """
        if not self._writes:
            return
        if self._writer is None:
            raise RuntimeError(
                f"{self.folder}: step {step} is not saved: save within "
                "`with Checkpoints(folder) as checkpoints:`, whose end waits until all is written"
            )
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"expected a step >= 0, got {step}")
        paths = jax.tree_util.tree_leaves_with_path(tree)
        leaves = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
        if len(leaves) < len(paths):
            raise ValueError(f"two leaves have the same path; the paths are {list(leaves)}")
        # A copy, which later steps cannot change.
        file = Checkpoint(step, dict(record or {}), leaves).to_bytes()
        self.wait()
        data = np.frombuffer(file, np.uint8)
        self._pending = step, self._writer.submit(self._write, step, data)

    def wait(self) -> None:
        """Wait until the last save is on the disk.

        Raises:
          CheckpointError: the save failed, without an `on_failure`.
        """
        if self._pending is None:
            return
        step, written = self._pending
        error: Any = written.exception()  # if interrupted here, the save stays pending
        self._pending = None
        if error is not None:
            self._on_failure(step, error)

    def steps(self) -> list[int]:
        """Return the steps of the committed checkpoints, in order."""
        return list(self._committed())

    def load(self, step: int | None = None) -> Checkpoint:
        """Return the checkpoint of a step, None for the last; wait for an unfinished save.

        Raises:
          FileNotFoundError: the checkpoint does not exist.
          CheckpointError: it is damaged; names its folder and the step before it.
        """
        committed = self._settled()
        wanted = max(committed, default=None) if step is None else step
        if wanted not in committed:
            raise FileNotFoundError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self.folder}; "
                f"there are {list(committed) or 'none'}"
            )
        try:
            return _read(wanted, committed[wanted])
        except CheckpointError as error:
            before = max((s for s in committed if s < wanted), default=None)
            hint = "there is none before" if before is None else f"load({before}) is the one before"
            raise CheckpointError(error.file, f"{error.reason}; {hint}") from error

    def newest(self, on_damage: Callable[[CheckpointError], None]) -> Checkpoint | None:
        """Return the newest readable checkpoint, None if there are none; wait for a save.

        Args:
          on_damage: called with the error of each newer, damaged checkpoint.

        Raises:
          CheckpointError: all checkpoints are damaged.
        """
        committed = self._settled()
        for step in reversed(committed):
            try:
                return _read(step, committed[step])
            except CheckpointError as error:
                self._damaged.add(committed[step])
                on_damage(error)
        if committed:
            reason = f"all checkpoints are damaged: steps {list(committed)}"
            raise CheckpointError(self.folder, reason)
        return None

    def _settled(self) -> dict[int, Path]:
        """Return the checkpoints after an unfinished save, whose errors are for `wait`."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending[1]])
        return self._committed()

    def _committed(self) -> dict[int, Path]:
        """Return the newest checkpoint of each step, in order."""
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("*")]
        found = sorted(
            (int(match[1]), int(match[2] or 0), path)
            for match, path in matches
            if match and not match[3] and path.is_dir()
        )
        return {step: path for step, _, path in found}

    def _write(self, step: int, data: np.ndarray) -> None:
        from orbax.checkpoint import v1  # takes half a second

        before = self._committed()
        number = int(before[step].suffix[1:] or 0) + 1 if step in before else 0
        target = self.folder / (f"{step:08d}.{number}" if number else f"{step:08d}")
        try:
            if not self.folder.is_dir():
                raise FileNotFoundError(f"{self.folder} has vanished")
            self._delete_all_but(before)  # left by killed saves
            if _processes() > 1:
                _save_alone(target, data)
            else:
                v1.save(str(target), {"file": data})
            for path in (*target.rglob("*"), target, self.folder):
                _sync(path)  # Orbax does not, and what is older is about to be deleted
        except BaseException as error:
            with contextlib.suppress(OSError):  # the disk may be full
                self._delete_all_but(before)
            reason = f"cannot be written: {_short(error)}"
            raise CheckpointError(self.folder / f"{step:08d}", reason) from error
        after = before | {step: target}
        good = [at for at in sorted(after) if at <= step and after[at] not in self._damaged]
        oldest = good[-self.keep :][0]
        with contextlib.suppress(OSError):  # the next save tries again
            self._delete_all_but({at: path for at, path in after.items() if at >= oldest})

    def _delete_all_but(self, kept: Mapping[int, Path]) -> None:
        """Delete the other checkpoints, and what killed saves and deletions have left."""
        for path in sorted(self.folder.glob("*"), reverse=True):  # leftovers first
            match = _NAME.fullmatch(path.name)
            if not match or path in kept.values():
                continue
            if not match[3]:  # renamed first, so that half a checkpoint never counts as one
                path = path.rename(path.with_name(f"{path.name}.deleted"))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _read(step: int, folder: Path) -> Checkpoint:
    from orbax.checkpoint import v1

    try:
        file = folder / _FILE
        saved = file.read_bytes() if file.exists() else v1.load(str(folder))["file"].tobytes()
        found = Checkpoint.from_bytes(saved)
        if found.step != step:
            raise ValueError(f"is of step {found.step}")
    except Exception as error:  # Orbax's errors are of many types
        raise CheckpointError(folder, f"is damaged: {_short(error)}") from error
    return found


def _processes() -> int:
    return jax.process_count() if jax.distributed.is_initialized() else 1


def _save_alone(target: Path, data: np.ndarray) -> None:
    """Save without Orbax, whose save compares the folder's name over all processes."""
    draft = target.with_name(f"{target.name}.orbax-checkpoint-tmp")
    draft.mkdir()
    (draft / _FILE).write_bytes(data.data)
    draft.rename(target)


def _raise(step: int, error: Exception) -> None:
    raise error


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _kind(leaf: Any) -> str:
    is_array = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    return f"{leaf.dtype.name}{list(leaf.shape)}" if is_array else type(leaf).__name__


def _short(error: BaseException) -> str:
    """Return one line: the system's message if a cause has one, else the error's first line."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return str(error).strip().partition("\n")[0] or type(error).__name__
