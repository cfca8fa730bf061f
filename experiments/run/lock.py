"""Locks: one run in a workdir at a time. The system releases them when a process dies."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from experiments.run.workdir import WorkdirError, unwritable

MAIN = "lock"


@contextlib.contextmanager
def locked(workdir: Path, member: int | None, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the workdir's lock, or that of one sub-network's training, while the context lasts.

    Different processes may train single sub-networks of one run at the same time. Any other run
    excludes all others.

    Args:
      workdir: created if missing, and removed again if the run leaves nothing in it.
      member: the only sub-network to be trained; None for the whole run.
      say: called if a killed run has left a lock.

    Raises:
      WorkdirError: another run holds the lock.
    """
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(workdir, error) from None
    try:
        with contextlib.ExitStack() as main, contextlib.ExitStack() as single:
            main.enter_context(_held(workdir, MAIN, say))
            if member is None:
                for other in sorted(workdir.glob(f".{MAIN}-*[0-9]")):
                    with _held(workdir, other.name.removeprefix("."), say):
                        pass
            else:
                single.enter_context(_held(workdir, f"{MAIN}-{member}", say))
                main.close()
            yield
    finally:
        _remove_if_empty(made)


def _remove_if_empty(made: list[Path]) -> None:
    """Remove the folders, the deepest first, if they hold nothing but locks."""
    files = [*made[0].iterdir()] if made and made[0].is_dir() else []
    if all(file.name.startswith(f".{MAIN}") for file in files):
        with contextlib.suppress(OSError):
            for file in files:
                file.unlink()
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def _held(workdir: Path, name: str, say: Callable[[str], None]) -> Iterator[filelock.FileLock]:
    file, owner = workdir / f".{name}", workdir / f".{name}.owner.json"
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise WorkdirError(
            f"another run{_described(owner)} is using {workdir}. Wait until it ends, or give "
            "another --workdir"
        ) from None
    except OSError as error:
        raise unwritable(workdir, error) from None
    try:
        if owner.exists():
            say(f"a run{_described(owner)} was killed; its lock on {workdir} is ignored")
        owner.write_text(
            json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()})
        )
        yield lock
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()  # the file stays: removing it could let two others in at once


def _described(owner: Path) -> str:
    """Return who holds a lock, in parentheses; "" if that cannot be read."""
    try:
        there = json.loads(owner.read_text())
        return f" (process {there['pid']} on {there['host']}, since {there['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
