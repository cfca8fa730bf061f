"""The other processes of a job: the end when one has died, and notes for all."""

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax

PEER_LOST = 6
_notes: dict[str, str] = {}  # of one process
_SIGNS = ("gloo", "nccl", "rccl", "connection", "coordination", "barrier", "unavailable")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def ending_with_peers(
    say: Callable[[str], object] = _to_stderr, code: int = PEER_LOST
) -> Iterator[None]:
    """End this process soon after another one of the job has died, while the body runs.

    A collective with a dead process fails within seconds. An error would then wait in the barrier
    of `jax.distributed.shutdown` for the dead one, and JAX aborts the process when its coordinator,
    process 0, is gone. Here both are one message and one exit code. Any other error of the body
    ends the process with its traceback and code 1, also without the barrier, so that the others
    notice. Contexts within the body are left first, so saves that were begun are finished unless
    JAX aborts. Around `jax.distributed.initialize` it does the same for others that do not come.

    A process that lives but does not answer is noticed by its missing heartbeats
    (`jax.distributed.initialize(heartbeat_timeout_seconds=…)`) only if all its threads stand still.

    Args:
      say: called with the message.
      code: the exit code.

    >>> with ending_with_peers():
    ...     pass
    """
    joined = jax.distributed.is_initialized()
    who = f"process {jax.process_index()} of {jax.process_count()}" if joined else "this process"

    def lost(reason: str) -> None:
        say(
            f"{who} ends, because another one has died or cannot be reached; start all again. "
            f"JAX says: {reason[:300]}"
        )
        leave(code)

    # XLA aborts in a thread of C++, where Python's handlers do not run before the process is gone.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
    aborted = handler(lambda number: lost("the coordination service is gone, see above"))
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = libc.signal(signal.SIGABRT, ctypes.cast(aborted, ctypes.c_void_p))
    try:
        yield
    except BaseException as error:
        if not joined or (isinstance(error, SystemExit) and error.code in (None, 0)):
            raise
        words = str(error).lower()
        if isinstance(error, jax.errors.JaxRuntimeError) and any(word in words for word in _SIGNS):
            lost(str(error).partition("\n")[0])
        traceback.print_exc()
        leave(1)
    finally:
        libc.signal(signal.SIGABRT, before)


def leave(code: int) -> None:
    """End the process without the barrier in which JAX waits for the others.

    >>> leave(6)  # doctest: +SKIP
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def post(name: str, text: str) -> None:
    """Leave a note that every process can read at once; another one of that name is replaced.

    >>> post("asked to stop", "yes")
    """
    if jax.process_count() == 1:
        _notes[name] = text
    else:
        client().key_value_set(f"dcjax/{name}", text, allow_overwrite=True)


def posted(name: str) -> str | None:
    """Return the note of that name, None if nobody has left one; wait for no process.

    >>> post("weather", "fair")
    >>> posted("weather"), posted("tides")
    ('fair', None)
    """
    if jax.process_count() == 1:
        return _notes.get(name)
    try:
        return client().key_value_try_get(f"dcjax/{name}")
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def client() -> Any:
    """Return JAX's client of its coordination service."""
    from jax._src import distributed  # JAX has no public one

    return distributed.global_state.client
