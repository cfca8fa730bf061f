"""Locks: one run in a workdir at a time. The system releases them when a process dies."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from experiments.run.workdir import WorkdirError, unwritable


@contextlib.contextmanager
def locked(workdir: Path, member: int | None) -> Iterator[None]:
    """Hold the workdir's lock, or that of one sub-network's training, while the context lasts.

    Different processes may train single sub-networks of one run at the same time. Any other run
    excludes all others.

    Args:
      workdir: created if missing.
      member: the only sub-network to be trained; None for the whole run.

    Raises:
      WorkdirError: another run holds the lock, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(workdir, error) from None
    with contextlib.ExitStack() as main, contextlib.ExitStack() as single:
        main.enter_context(_held(workdir / ".lock"))
        if member is None:
            for other in sorted(workdir.glob(".lock-*[0-9]")):
                with _held(other):
                    pass
        else:
            single.enter_context(_held(workdir / f".lock-{member}"))
            main.close()
        yield


@contextlib.contextmanager
def _held(file: Path) -> Iterator[None]:
    owner = file.with_name(f"{file.name}.owner")  # taking a lock empties the lock's file
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}")
    except filelock.Timeout:
        there = owner.read_text() if owner.exists() else "which has just begun"
        raise WorkdirError(
            f"another run ({there}) is using {file.parent}. Wait until it ends, or give another "
            "--workdir"
        ) from None
    except OSError as error:
        raise unwritable(file.parent, error) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()  # the file stays: removing it could let two others in at once
