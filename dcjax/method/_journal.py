"""The journal of a run: its stages write checkpoints, messages and metrics into it."""

import contextlib
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from dcjax.checkpoints import Checkpoint, Checkpoints


@runtime_checkable
class Kept(Protocol):
    """The checkpoints of one stage; `found` is the newest at its start, None if it had none."""

    found: Checkpoint | None

    def into(self, like: PyTree) -> PyTree:
        """Return what `found` holds in the structure of `like`."""
        ...

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        """Return whether to save after this step."""
        ...

    def save(
        self, step: int, tree: PyTree, record: dict[str, Any], *, finished: bool = False
    ) -> None:
        """Save a checkpoint; `finished` if the stage ends with it."""
        ...


@runtime_checkable
class Journal(Protocol):
    """Keeps a run's checkpoints and metrics, and speaks.

    * `opened(name, apart)`: open the checkpoints of a stage; the context's end waits for saves.
      `apart` says that each process has a state of its own in this stage.
    * `say(line)`: tell people; `warn(line)`: tell them of something wrong.
    * `progress(line)`: tell them how far a stage is, as a line of metrics does.
    * `log(**fields)`: write a line of metrics.
    * `bar(title, steps)`: show a bar; the context gives a function of the steps done.
    * `stopping()`: a context in which a request to stop waits for the end of the step.
    """

    def opened(
        self, name: str, *, apart: bool = False
    ) -> contextlib.AbstractContextManager[Kept]: ...
    def warn(self, line: str) -> None: ...
    def say(self, line: str) -> None: ...
    def progress(self, line: str) -> None: ...
    def log(self, **fields: Any) -> None: ...
    def bar(
        self, title: str, steps: int
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]: ...
    def stopping(self) -> contextlib.AbstractContextManager[None]: ...


class Folder:
    """A journal: checkpoints in a folder or none, printed lines or none.

    A checkpoint records the run's settings, plain values by their names. A folder with another
    run's checkpoints is refused, and so is a folder in a job of several processes.
    """

    def __init__(
        self,
        folder: Path | None = None,
        settings: Mapping[str, Any] = MappingProxyType({}),
        progress: bool = False,
    ):
        if folder is not None and jax.process_count() > 1:
            raise ValueError(
                f"folder={str(folder)!r} keeps the checkpoints of one process, and this job has "
                f"{jax.process_count()}: leave folder out, or run `dcjax train` with "
                "--coordinator, which keeps those of several"
            )
        self._folder = folder
        self._settings = dict(settings)
        self._progress = progress and jax.process_index() == 0

    @contextlib.contextmanager
    def opened(self, name: str, *, apart: bool = False) -> Iterator[Kept]:
        """Open the checkpoints of a stage."""
        del apart  # of one process
        if self._folder is None:
            yield _Forgotten()
            return
        with Checkpoints(self._folder / "checkpoints" / name, keep=1) as checkpoints:
            found = checkpoints.newest(lambda error: self.say(f"{error}; using the one before"))
            if found is not None:
                self._check(found.record["settings"])
            yield _Saved(checkpoints, found, {"settings": self._settings})

    def _check(self, there: Mapping[str, Any]) -> None:
        here = self._settings
        wrong = [
            f"{name}: {there.get(name)} there, {here.get(name)} here"
            for name in {**here, **there}
            if there.get(name) != here.get(name)
        ]
        if wrong:
            raise ValueError(
                f"folder={str(self._folder)!r} holds another run:\n  "
                + "\n  ".join(wrong)
                + "\nGive another folder, or delete this one"
            )

    def say(self, line: str) -> None:
        """Print a line, if there is to be progress."""
        if self._progress:
            print(line, file=sys.stderr, flush=True)

    progress = say

    def warn(self, line: str) -> None:
        """Give a `RuntimeWarning`."""
        warnings.warn(line, RuntimeWarning, stacklevel=2)

    def log(self, **fields: Any) -> None:
        """Write nothing."""

    @contextlib.contextmanager
    def bar(self, title: str, steps: int) -> Iterator[Callable[[int], None]]:
        """Show nothing."""
        del title, steps
        yield lambda step: None

    def stopping(self) -> contextlib.AbstractContextManager[None]:
        """Let a request to stop through at once."""
        return contextlib.nullcontext()


class _Saved:
    def __init__(
        self, checkpoints: Checkpoints, found: Checkpoint | None, common: Mapping[str, Any]
    ):
        self.found = found
        self._checkpoints = checkpoints
        self._common = dict(common)

    def into(self, like: PyTree) -> PyTree:
        assert self.found is not None
        return self.found.into(like)

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        return epoch_ends

    def save(
        self, step: int, tree: PyTree, record: dict[str, Any], *, finished: bool = False
    ) -> None:
        self._checkpoints.save(step, tree, self._common | record | {"finished": finished})


class _Forgotten:
    found: Checkpoint | None = None

    def into(self, like: PyTree) -> PyTree:
        return like

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        return False

    def save(
        self, step: int, tree: PyTree, record: dict[str, Any], *, finished: bool = False
    ) -> None:
        pass


def digest(*arrays: np.ndarray) -> str:
    """Return the SHA-256 of arrays one after another.

    >>> digest(np.zeros(2, np.uint8))[:8]
    '96a296d2'
    """
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
