"""Checkpoints: written by Orbax in the background, whole or not at all, and checked when read.

A checkpoint of step 12 in a folder is what Orbax leaves in `00000012/`, and `00000012.json`, which
is written last and commits it: a digest of every leaf and of every file, and a record of the
caller's. Orbax commits atomically but loads flipped bits as if nothing had happened; the digests
find them. Where step 12 is saved again, Orbax writes to `00000012.again/`, and the new
`00000012.json`, which names it, takes the place of the old one.
"""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
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

PyTree = Any
_FORMAT = 1
# The names in a folder that are of its checkpoints, also what a save leaves that is killed.
_OWN = re.compile(r"([0-9]{8,})(\.json|\.draft|(\.again)?(\.orbax-checkpoint-tmp.*)?)")


class CheckpointError(Exception):
    """A checkpoint cannot be read or written; `file` and `reason` say what is wrong."""

    def __init__(self, file: Path, reason: str):
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


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

        Returns:
          The arrays, of JAX; of NumPy where JAX would narrow them (64 bits without
          `jax_enable_x64`).

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

    Saving takes a context, `with Checkpoints(folder) as checkpoints:`, whose end waits until all is
    written; where its body raises, that error goes on, with a note of what could not be written.

    Args:
      folder: made where it is missing. Names of eight digits and more in it are the checkpoints'.
      keep: so many are kept, the one just saved and those of the steps before it; of later steps,
        which a run leaves that went back, all, until it comes to them. One is deleted only when a
        newer one has been committed, and does not count where `newest` found it damaged.
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
        self._writer: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        self._damaged: set[int] = set()
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Checkpoints":
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
        """Save in the background; waits only for an unfinished save, and the copy to the host.

        Args:
          step: its number, not negative; a checkpoint of the same step is replaced.
          tree: a pytree of arrays; typed keys and bfloat16 too.
          record: what else is to be known, of values that JSON has; by default nothing.

        Raises:
          CheckpointError: the one before could not be written, and there is no `on_failure`; this
            one has not been saved.
          TypeError: a leaf is no array, lists every one; or the record is not for JSON.
          ValueError: the step is negative, or two leaves have the same path.
          RuntimeError: outside the context, where nothing would wait until it is written.
        """
        if self._writer is None:
            raise RuntimeError(
                f"{self.folder}: step {step} is not saved: save within "
                "`with Checkpoints(folder) as checkpoints:`, whose end waits until all is written"
            )
        step = operator.index(step)  # of NumPy's kind too
        _folder(step)
        paths = jax.tree_util.tree_leaves_with_path(tree)
        wrong = [f"{_name(path)}: {_kind(leaf)}" for path, leaf in paths if not _is_array(leaf)]
        if wrong:
            raise TypeError(
                "expected arrays of numbers, booleans or keys (jax.numpy.asarray makes them), "
                "got:\n  " + "\n  ".join(wrong)
            )
        count = collections.Counter(_name(path) for path, _ in paths)
        if twice := [name for name, leaves in count.items() if leaves > 1]:
            raise ValueError(f"expected a path for every leaf, these have several: {twice}")
        try:
            text = json.dumps(dict(record or {}))  # now, while its values are what they are
        except TypeError as error:
            raise TypeError(f"expected a record of values that JSON has: {error}") from None
        self.wait()
        leaves = {_name(path): _on_host(leaf) for path, leaf in paths}
        self._pending = step, self._writer.submit(self._write, step, leaves, json.loads(text))

    def wait(self) -> None:
        """Until what has been saved is on the disk.

        Raises:
          CheckpointError: it could not be written, and there is no `on_failure`.
        """
        if self._pending is None:
            return
        step, written = self._pending
        error = written.exception()  # an interrupt here leaves it pending
        self._pending = None
        if error is not None:
            failure = CheckpointError(
                self.folder / _folder(step), f"cannot be written: {_short(error)}"
            )
            failure.__cause__ = error
            if self._on_failure is None:
                raise failure
            self._on_failure(step, failure)

    def steps(self) -> list[int]:
        """The steps of the committed checkpoints, in order."""
        return sorted(
            step
            for step, paths in self._own().items()
            if any(path.suffix == ".json" for path in paths)
        )

    def load(self, step: int | None = None) -> Checkpoint:
        """A checkpoint; the newest unless told otherwise. Waits for an unfinished save.

        Args:
          step: its number; the highest there is where left out.

        Returns:
          What was saved, to the bit.

        Raises:
          FileNotFoundError: there is none.
          CheckpointError: a file of it is missing or not what was written; names the file, and the
            step before it.
        """
        self._settle()
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
            raise CheckpointError(error.file, f"{error.reason}; {hint}") from error

    def newest(self, on_damage: Callable[[CheckpointError], None]) -> Checkpoint | None:
        """The newest checkpoint that can be read. Waits for an unfinished save.

        Args:
          on_damage: told of each that cannot.

        Returns:
          What was saved; None if there is no checkpoint at all.

        Raises:
          CheckpointError: there are checkpoints and all are damaged.
        """
        self._settle()
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._read(step)
            except CheckpointError as error:
                self._damaged.add(step)
                on_damage(error)
        if steps:
            raise CheckpointError(self.folder, f"all checkpoints are damaged: steps {steps}")
        return None

    def _settle(self) -> None:
        """Until nothing is being written or deleted; whether it went well is for `wait` to say."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending[1]])

    def _own(self) -> dict[int, list[Path]]:
        """What there is of each step, of killed saves too; the committing files first."""
        own: dict[int, list[Path]] = {}
        for path in sorted(self.folder.glob("*"), key=lambda path: path.suffix != ".json"):
            match = _OWN.fullmatch(path.name)
            if match and _folder(int(match[1])) == match[1]:
                own.setdefault(int(match[1]), []).append(path)
        return own

    def _write(self, step: int, leaves: dict[str, Any], record: Any) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} has vanished")
        target = self.folder / _folder(step)
        commit = target.with_suffix(".json")
        standing = ()  # what there is of the same step stays until it is replaced
        with contextlib.suppress(CheckpointError):
            standing = commit, self.folder / _committed(commit)["folder"]
        if target in standing:
            target = target.with_suffix(".again")
        self._clear(step, standing)
        try:
            body = _saved(target, leaves) | {"format": _FORMAT, "step": step, "record": record}
            _commit(commit, {"digest": _digest(_canonical(body)), "body": body})
        except BaseException:
            with contextlib.suppress(OSError):
                self._clear(step, standing)  # it may have filled the disk
            raise
        self._damaged.discard(step)
        kept = [s for s in self.steps() if s <= step and s not in self._damaged][-self.keep :]
        with contextlib.suppress(OSError):  # what cannot be deleted now is tried again next time
            self._clear(step, (commit, target))
            for old in self._own():
                if old < kept[0]:
                    self._clear(old)

    def _clear(self, step: int, but: tuple[Path, ...] = ()) -> None:
        """The committing file first, so that no half of a checkpoint counts as one."""
        for path in self._own().get(step, []):
            if path not in but:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _read(self, step: int) -> Checkpoint:
        commit = self.folder / f"{_folder(step)}.json"
        body = _committed(commit)
        if body["step"] != step:
            raise CheckpointError(commit, f"is of step {body['step']}")
        target = self.folder / body["folder"]
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
        wanted = {
            f"{number:06d}": np.empty(leaf["shape"], _dtype(leaf["dtype"]))
            for number, leaf in enumerate(body["leaves"])
            if 0 not in leaf["shape"]
        }
        try:
            arrays = _orbax().load(str(target), wanted) if wanted else {}
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


def _orbax() -> Any:
    from orbax.checkpoint import v1  # half a second, for those who save

    return v1


def _saved(target: Path, leaves: dict[str, Any]) -> dict[str, Any]:
    """Save to a folder, and to the disk; what is to be committed of it."""
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
    if arrays:
        _orbax().save(str(target), arrays)
    else:  # nor an empty tree
        target.mkdir()
    for path in (target, *target.rglob("*")):
        _sync(path)
    return {"folder": target.name, "leaves": described, "files": _digests(target)}


def _folder(step: int) -> str:
    if step < 0:
        raise ValueError(f"expected a step >= 0, got {step}")
    return f"{step:08d}"


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _kind(leaf: Any) -> str:
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
        return type(leaf).__name__
    return f"{leaf.dtype.name}{list(leaf.shape)}"


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) and any(
        jax.numpy.issubdtype(leaf.dtype, kind)
        for kind in (np.number, np.bool_, jax.dtypes.prng_key)
    )


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _on_host(leaf: Any) -> Any:
    """A copy that no later step can change (on the CPU `device_get` alone may be a view)."""
    if _is_key(leaf):
        return np.array(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf))
    return np.array(leaf, leaf.dtype.newbyteorder("="))  # Orbax writes no other order


def _plain(leaf: Any) -> tuple[np.ndarray, str | None]:
    """The numbers of a leaf, and the kind of random key that they are."""
    return leaf if isinstance(leaf, tuple) else (leaf, None)


def _wrapped(data: np.ndarray, key: str | None) -> Any:
    if jax.numpy.asarray(np.empty(0, data.dtype)).dtype != data.dtype:
        return data  # JAX would narrow it
    array = jax.numpy.asarray(data)
    return array if key is None else jax.random.wrap_key_data(array, impl=key)


def _dtype(name: str) -> np.dtype[Any]:
    return jax.numpy.dtype(name)


def _bytes(data: np.ndarray) -> bytes:
    return np.ascontiguousarray(data).tobytes()


_hash = functools.partial(hashlib.blake2b, digest_size=16)


def _digest(content: bytes) -> str:
    return _hash(content).hexdigest()


def _digests(folder: Path) -> dict[str, list[Any]]:
    """Size and digest of every file."""
    found, file = {}, folder
    try:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                with file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, _hash).hexdigest()
                    found[file.relative_to(folder).as_posix()] = [stream.tell(), digest]
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
    _sync(file.parent)


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        number = os.open(path, os.O_RDONLY)  # not everywhere can that of a folder be synced
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _committed(file: Path) -> Any:
    """The body of a committing file."""
    try:
        content = json.loads(file.read_bytes())
        body, digest = content["body"], content["digest"]
    except FileNotFoundError:
        raise CheckpointError(file, "is missing") from None
    except OSError as error:
        raise CheckpointError(file, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
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
