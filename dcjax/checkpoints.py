"""Checkpoints: written by Orbax in the background, whole or not at all, and checked when read.

A checkpoint of step 12 in a folder is what Orbax leaves in `00000012/`, and `00000012.json`, which
is written last and commits it: a digest of every leaf and of every file, and a record of the
caller's. Orbax commits atomically but loads flipped bits as if nothing had happened; the digests
find them.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

PyTree = Any
_FORMAT = 1


class CheckpointError(Exception):
    """A checkpoint cannot be read or written; `file` and `reason` say what is wrong."""

    def __init__(self, file: Path, reason: str):
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = file, reason


class Checkpoint(NamedTuple):
    """What was saved: the step, the caller's record, and the leaves by their paths in the tree.

    `into(like)` is the tree again.
    """

    step: int
    record: dict[str, Any]
    leaves: dict[str, Any]

    def into(self, like: PyTree) -> PyTree:
        """The saved leaves in the structure of `like`.

        Args:
          like: a pytree of arrays of the same structure, shapes and dtypes.

        Raises:
          ValueError: it has other leaves; lists every one.
        """
        paths, structure = jax.tree_util.tree_flatten_with_path(like)
        there = {name: _kind(leaf) for name, leaf in self.leaves.items()}
        here = {_name(path): _kind(leaf) for path, leaf in paths}
        wrong = [
            f"{name}: saved {there.get(name, 'nothing')}, expected {here.get(name, 'nothing')}"
            for name in {**here, **there}
            if there.get(name) != here.get(name)
        ]
        if wrong:
            raise ValueError(
                f"the checkpoint of step {self.step} is of another tree:\n  " + "\n  ".join(wrong)
            )
        return structure.unflatten([self.leaves[_name(path)] for path, _ in paths])


class Checkpoints:
    """The checkpoints of one training run in a folder.

    To be used as a context manager: its end waits until all is written.

    Args:
      folder: made where it is missing.
      keep: so many of the newest are kept. One is deleted only when a newer one has been committed.
      on_failure: told of a checkpoint that could not be written, its step and the error, so that
        training can go on; without it the error is raised by the next `save`, or by `wait`.

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
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def save(self, step: int, tree: PyTree, record: Mapping[str, Any]) -> None:
        """Save in the background; waits only for an unfinished save, and the copy to the host.

        Args:
          step: its number, not negative; a checkpoint of the same step is replaced.
          tree: a pytree of arrays; typed keys and bfloat16 too.
          record: what else is to be known, of values that JSON has.
        """
        self.wait()
        leaves = {
            _name(path): _on_host(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        text = json.dumps(dict(record))  # now, while the caller's values are what they are
        self._pending = step, self._writer.submit(self._write, step, leaves, json.loads(text))

    def wait(self) -> None:
        """Until what has been saved is on the disk.

        Raises:
          CheckpointError: it could not be written, and there is no `on_failure`.
        """
        if self._pending is None:
            return
        (step, written), self._pending = self._pending, None
        try:
            written.result()
        except Exception as error:
            failure = CheckpointError(
                self.folder / _folder(step), f"cannot be written: {_short(error)}"
            )
            if self._on_failure is None:
                raise failure from error
            self._on_failure(step, failure)

    def steps(self) -> list[int]:
        """The steps of the committed checkpoints, in order."""
        names = (file.stem for file in self.folder.glob("*.json"))
        return sorted(int(name) for name in names if name.isdecimal())

    def load(self, step: int | None = None) -> Checkpoint:
        """A checkpoint; the newest unless told otherwise.

        Raises:
          FileNotFoundError: there is none.
          CheckpointError: a file of it is missing or not what was written; names the file, and the
            step before it.
        """
        steps = self.steps()
        if step is None and steps:
            step = steps[-1]
        if step is None or step not in steps:
            raise FileNotFoundError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self.folder}; "
                f"there are {steps or 'none'}"
            )
        try:
            return self._read(step)
        except CheckpointError as error:
            before = [s for s in steps if s < step]
            hint = f"load({before[-1]}) is the one before" if before else "there is none before"
            raise CheckpointError(
                error.file, f"{error.args[0].split(': ', 1)[1]}; {hint}"
            ) from error

    def newest(self, on_damage: Callable[[CheckpointError], None]) -> Checkpoint | None:
        """The newest checkpoint that can be read; None if there is none at all.

        Args:
          on_damage: told of each that cannot.

        Raises:
          CheckpointError: there are checkpoints and all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._read(step)
            except CheckpointError as error:
                on_damage(error)
        if steps:
            raise CheckpointError(self.folder, f"all checkpoints are damaged: steps {steps}")
        return None

    def _write(self, step: int, leaves: dict[str, Any], record: Any) -> None:
        from orbax.checkpoint import v1  # half a second, for those who save

        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} has vanished")
        target = self.folder / _folder(step)
        self._delete(step)
        described, arrays = [], {}
        for number, (name, leaf) in enumerate(leaves.items()):
            data, key = _plain(leaf)
            described.append(
                {
                    "name": name,
                    "dtype": data.dtype.name,
                    "shape": list(data.shape),
                    "key": key,
                    "digest": _digest(_bytes(data)),
                }
            )
            if data.size:  # Orbax takes no empty arrays
                arrays[f"{number:06d}"] = data
        v1.save(str(target), arrays)
        body = {
            "format": _FORMAT,
            "step": step,
            "leaves": described,
            "files": _digests(target),
            "record": record,
        }
        _commit(target.with_suffix(".json"), {"digest": _digest(_canonical(body)), "body": body})
        for old in self.steps()[: -self.keep]:
            self._delete(old)

    def _delete(self, step: int) -> None:
        """The committing file first, so that no half of a checkpoint counts as one."""
        target = self.folder / _folder(step)
        target.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        for left in self.folder.glob(f"{target.name}.*"):  # by a save that was killed
            shutil.rmtree(left, ignore_errors=True)

    def _read(self, step: int) -> Checkpoint:
        target = self.folder / _folder(step)
        body = _committed(target.with_suffix(".json"))
        found = _digests(target)
        for name, (size, digest) in body["files"].items():
            if name not in found:
                raise CheckpointError(target / name, "is missing")
            if found[name] != [size, digest]:
                raise CheckpointError(
                    target / name,
                    f"is not what was written: {found[name][0]} bytes, expected {size}"
                    if found[name][0] != size
                    else "is not what was written: its bytes have changed",
                )
        from orbax.checkpoint import v1

        wanted = {
            f"{number:06d}": np.empty(leaf["shape"], _dtype(leaf["dtype"]))
            for number, leaf in enumerate(body["leaves"])
            if 0 not in leaf["shape"]
        }
        try:
            arrays = v1.load(str(target), wanted)
        except Exception as error:
            raise CheckpointError(target, f"Orbax cannot read it: {_short(error)}") from error
        leaves = {}
        for number, leaf in enumerate(body["leaves"]):
            empty = np.empty(leaf["shape"], _dtype(leaf["dtype"]))
            data = np.asarray(arrays.get(f"{number:06d}", empty))
            if _digest(_bytes(data)) != leaf["digest"]:
                raise CheckpointError(target, f"the leaf {leaf['name']} is not what was saved")
            leaves[leaf["name"]] = _wrapped(data, leaf["key"])
        return Checkpoint(body["step"], body["record"], leaves)


def _folder(step: int) -> str:
    if step < 0:
        raise ValueError(f"expected a step >= 0, got {step}")
    return f"{step:08d}"


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _on_host(leaf: Any) -> Any:
    """A copy that no later step can change (on the CPU `device_get` alone may be a view)."""
    if _is_key(leaf):
        return np.array(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf))
    return np.array(leaf)


def _plain(leaf: Any) -> tuple[np.ndarray, str | None]:
    """The numbers of a leaf, and the kind of random key that they are."""
    return leaf if isinstance(leaf, tuple) else (leaf, None)


def _wrapped(data: np.ndarray, key: str | None) -> Any:
    array = jax.numpy.asarray(data)
    return array if key is None else jax.random.wrap_key_data(array, impl=key)


def _dtype(name: str) -> np.dtype[Any]:
    return jax.numpy.dtype(name)


def _bytes(data: np.ndarray) -> bytes:
    return np.ascontiguousarray(data).tobytes()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _digests(folder: Path) -> dict[str, list[Any]]:
    """Size and digest of every file."""
    found = {}
    for file in sorted(folder.rglob("*")):
        try:
            if file.is_file():
                content = file.read_bytes()
                found[file.relative_to(folder).as_posix()] = [len(content), _digest(content)]
        except OSError as error:
            raise CheckpointError(file, f"cannot be read: {error.strerror}") from error
    return found


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _commit(file: Path, content: Any) -> None:
    """Write JSON to a file that appears whole or not at all, and stays after a power cut."""
    draft = file.with_suffix(".draft")
    try:
        with open(draft, "w", encoding="utf-8") as stream:
            json.dump(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not everywhere can a folder be synced
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _committed(file: Path) -> Any:
    """The body of a committing file."""
    try:
        content = json.loads(file.read_bytes())
        body, digest = content["body"], content["digest"]
    except FileNotFoundError:
        raise CheckpointError(file, "is missing") from None
    except OSError as error:
        raise CheckpointError(file, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(file, "is not what was written") from error
    if digest != _digest(_canonical(body)):
        raise CheckpointError(file, "is not what was written: its bytes have changed")
    if body["format"] != _FORMAT:
        raise CheckpointError(file, f"has format {body['format']}, this version reads {_FORMAT}")
    return body


def _short(error: BaseException) -> str:
    """An error in one line; the system's own words where there are some below it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
