"""One run in a workdir at a time, by locks that the system releases when a process dies."""

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
    """Hold the workdir's lock, or that of one sub-network's training, as long as the context lasts.

    The sub-networks of one run may be trained at the same time, each by a process of its own; the
    run as a whole needs the workdir for itself.

    Args:
      workdir: made where it is missing, and removed again if the run leaves nothing in it.
      member: the only sub-network to be trained; None for the whole run.
      say: told of a lock that a killed run has left.

    Raises:
      WorkdirError: another run holds it; at once.
    """
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(workdir, error) from None
    try:
        with contextlib.ExitStack() as main, contextlib.ExitStack() as own:
            main.enter_context(_held(workdir, MAIN, say))
            if member is None:
                for other in sorted(workdir.glob(f".{MAIN}-*[0-9]")):
                    with _held(workdir, other.name.removeprefix("."), say):
                        pass
            else:
                own.enter_context(_held(workdir, f"{MAIN}-{member}", say))
                main.close()
            yield
    finally:
        _remove_if_empty(made)


def _remove_if_empty(made: list[Path]) -> None:
    """Folders that hold nothing but locks, the deepest first."""
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
            f"another run{_described(owner)} is at work in {workdir}. Wait for its end, or give "
            "another --workdir"
        ) from None
    except OSError as error:
        raise unwritable(workdir, error) from None
    try:
        if owner.exists():
            say(f"a run{_described(owner)} ended without a word; its lock on {workdir} is void")
        owner.write_text(
            json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()})
        )
        yield lock
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()  # the file stays: to remove it could let two others in at once


def _described(owner: Path) -> str:
    """Who holds a lock, where that can be read."""
    try:
        there = json.loads(owner.read_text())
        return f" (process {there['pid']} on {there['host']}, since {there['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
