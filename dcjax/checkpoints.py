"""Checkpoints: written and committed by Orbax, whole or not at all, and checked when they are read.

The checkpoint of step 12 in a folder is what Orbax leaves in `00000012/`; if step 12 is saved
again, in `00000012.1/`, and so on: the highest number counts. Orbax commits atomically but loads
flipped bits without an error, so its custom metadata hold a sealed description with a SHA-256 for
every leaf (`dcjax._files.manifest`), and the caller's record. The leaves' bytes are one array to
Orbax: of several damaged arrays it reports one, and the errors of the others cannot be caught.
"""

import concurrent.futures
import contextlib
import json
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

from dcjax._files import manifest

# A folder's names of checkpoints; those with a suffix are left by a killed save or deletion.
_NAME = re.compile(r"([0-9]{8,})(?:\.([0-9]+))?(\.deleted|\.orbax-checkpoint-tmp.*)?")


class CheckpointError(Exception):
    """A checkpoint cannot be read or written; `file` and `reason` say what is wrong."""

    def __init__(self, file: Path, reason: str):
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class Checkpoint(NamedTuple):
    """What was saved: the step, the caller's record, and the leaves by their paths in the tree.

    `into(like)` returns the tree.
    """

    step: int
    record: dict[str, Any]
    leaves: dict[str, Any]

    def into(self, like: PyTree) -> PyTree:
        """Return the saved leaves in the structure of `like`.

        Args:
          like: a pytree of arrays of the same structure, shapes and dtypes.

        Returns:
          JAX arrays; NumPy arrays where JAX would narrow them (64 bits without `jax_enable_x64`).

        Raises:
          ValueError: the leaves differ; lists every difference.
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
            raise ValueError(
                f"the checkpoint of step {self.step} is of another tree:\n  " + "\n  ".join(wrong)
            )
        return structure.unflatten([self.leaves[name] for name in here])


class Checkpoints:
    """The checkpoints of one training run in a folder.

    Save within the context, `with Checkpoints(folder) as checkpoints:`. Its end waits until
    everything is written; if its body raises, that error goes on, with a note of what could not be
    written.

    Args:
      folder: made if it is missing. Names of eight digits and more in it are the checkpoints'.
      keep: how many to keep: the one just saved and those of the steps before it. All of later
        steps stay until a run that went back reaches them. An old one is deleted only after a newer
        one is committed, and does not count if `newest` found it damaged.
      on_failure: called with the step and the error when a checkpoint could not be written, so that
        training can go on; without it the next `save` or `wait` raises the error.

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
    ):
        if keep < 1:
            raise ValueError(f"expected keep >= 1, got {keep}")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._on_failure = on_failure
        self._writer: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        self._damaged: set[Path] = set()
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Checkpoints":
        # A thread of ours, because Orbax in the caller's thread would meddle with its event loop.
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
        """Save in the background, after an unfinished save and a copy to the host.

        Args:
          step: its number, not negative; a checkpoint of the same step is replaced.
          tree: a pytree of arrays or typed random keys.
          record: values that JSON has, to be kept with it.

        Raises:
          CheckpointError: the one before could not be written, without an `on_failure`; this
            one has not been saved.
          TypeError: leaves are not arrays, lists every one; or the record is not for JSON.
          ValueError: the step is negative, or two leaves have the same path.
          RuntimeError: outside the context, where nothing would wait until it is written.
        """
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
        description, arrays = manifest.describe(leaves)
        data = manifest.pack(arrays)  # a copy, which later steps cannot change
        content = {"step": step, "record": dict(record or {}), "leaves": description}
        try:
            text = manifest.seal({**content, "bytes": data.size})
        except TypeError as error:
            raise TypeError(f"expected a record of values that JSON has: {error}") from None
        self.wait()
        self._pending = step, self._writer.submit(self._write, step, text, data)

    def wait(self) -> None:
        """Wait until what has been saved is on the disk.

        Raises:
          CheckpointError: it could not be written, without an `on_failure`.
        """
        if self._pending is None:
            return
        step, written = self._pending
        error = written.exception()  # if interrupted here, the save stays pending
        self._pending = None
        if error is not None:
            reason = f"cannot be written: {_short(error)}"
            failure = CheckpointError(self.folder / f"{step:08d}", reason)
            failure.__cause__ = error
            if self._on_failure is None:
                raise failure
            self._on_failure(step, failure)

    def steps(self) -> list[int]:
        """Return the steps of the committed checkpoints, in order."""
        return list(self._committed())

    def load(self, step: int | None = None) -> Checkpoint:
        """Return a checkpoint to the bit; waits for an unfinished save.

        Args:
          step: its number; None for the highest.

        Raises:
          FileNotFoundError: the checkpoint does not exist.
          CheckpointError: it is damaged; names its folder, and the step before it.
        """
        self._settle()
        committed = self._committed()
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
        """Return the newest checkpoint that can be read; waits for an unfinished save.

        Args:
          on_damage: called with the error of each that cannot.

        Returns:
          What was saved; None without any checkpoint.

        Raises:
          CheckpointError: there are checkpoints and all are damaged.
        """
        self._settle()
        committed = self._committed()
        for step in reversed(committed):
            try:
                return _read(step, committed[step])
            except CheckpointError as error:
                self._damaged.add(committed[step])
                on_damage(error)
        if committed:
            raise CheckpointError(
                self.folder, f"all checkpoints are damaged: steps {list(committed)}"
            )
        return None

    def _settle(self) -> None:
        """Wait until nothing is being written or deleted; its errors are for `wait`."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending[1]])

    def _found(self) -> list[tuple[int, int, bool, Path]]:
        """Return step, number, whether it is committed, and path of everything that is ours."""
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("*"))
        return sorted(
            (int(match[1]), int(match[2] or 0), not match[3] and path.is_dir(), path)
            for match, path in matches
            if match and match[1] == f"{int(match[1]):08d}"
        )

    def _committed(self) -> dict[int, Path]:
        """Return the checkpoints by their steps, in order; the newest of each step."""
        return {step: path for step, _, committed, path in self._found() if committed}

    def _write(self, step: int, text: str, data: np.ndarray) -> None:
        from orbax.checkpoint import v1  # half a second, only for those who save

        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} has vanished")
        self._delete(lambda at, is_whole, path: not is_whole)  # left by killed saves
        number = max((n for at, n, *_ in self._found() if at == step), default=-1) + 1
        target = self.folder / (f"{step:08d}.{number}" if number else f"{step:08d}")
        try:
            v1.save(str(target), {"leaves": data}, custom_metadata={"dcjax": text})
            for path in (*target.rglob("*"), target, self.folder):
                _sync(path)  # Orbax does not, and what is older is about to be deleted
        except BaseException:
            with contextlib.suppress(OSError):  # what there is may fill the disk
                self._delete(lambda at, is_whole, path: path == target or not is_whole)
            raise
        good = {at: path for at, path in self._committed().items() if path not in self._damaged}
        kept = sorted(at for at in good if at <= step)[-self.keep :]
        with contextlib.suppress(OSError):  # the next save tries again
            self._delete(lambda at, _, path: at < kept[0] or (at == step and path != target))

    def _delete(self, unwanted: Callable[[int, bool, Path], bool]) -> None:
        for step, _, committed, path in self._found():
            if unwanted(step, committed, path):
                if committed:  # renamed first, so that half a checkpoint never counts as one
                    path = path.rename(path.with_name(f"{path.name}.deleted"))
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _read(step: int, folder: Path) -> Checkpoint:
    from orbax.checkpoint import v1

    try:
        # Orbax's function for this would read the arrays' metadata too, and log what is damaged.
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())
        content = manifest.unseal(metadata["custom_metadata"]["dcjax"])
        if content["step"] != step:
            raise ValueError(f"is of step {content['step']}")
        like = np.empty(content["bytes"], np.uint8)
        data = v1.load(str(folder), {"leaves": like})["leaves"]
        leaves = manifest.restore(content["leaves"], manifest.unpack(content["leaves"], data))
    except Exception as error:  # Orbax's errors are of many types
        raise CheckpointError(folder, f"is damaged: {_short(error)}") from error
    for name, leaf in leaves.items():
        leaves[name] = leaf if manifest.is_narrowed(leaf) else jax.numpy.asarray(leaf)
    return Checkpoint(step, content["record"], leaves)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _kind(leaf: Any) -> str:
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        return type(leaf).__name__
    return f"{leaf.dtype.name}{list(leaf.shape)}"


def _short(error: BaseException) -> str:
    """Return an error in one line; the system's words if there are any among its causes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return str(error).strip().partition("\n")[0] or type(error).__name__
