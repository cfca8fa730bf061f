"""Arrays that took long to read, kept in the user's cache."""

import hashlib
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL

from experiments.data.types import Notify

A = TypeVar("A", bound=np.ndarray)
PAYS = 5.0  # seconds


def kept(identity: str, read: Callable[[], A], notify: Notify, pays: float = PAYS) -> A:
    """Return what `read` returns, from the cache if it has been kept there.

    The file is `XDG_CACHE_HOME/dcjax/data/…`, by default in ~/.cache. Its checksum is checked; a
    damaged file is read again from the data.

    Args:
      identity: everything that the array depends on.
      read: reads the array.
      notify: called with what people should know.
      pays: seconds of reading from which the array is kept.
    """
    digest = hashlib.sha256(f"{PIL.__version__} {identity}".encode()).hexdigest()
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(cache, "dcjax", "data", f"{digest[:32]}.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["array"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not kept, or damaged
    started = time.monotonic()
    array = read()
    if time.monotonic() - started > pays:
        _keep(path, array, notify)
    return array


def _keep(path: Path, array: np.ndarray, notify: Notify) -> None:
    from dcjax.atomic import replacing  # imports JAX

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, array=array)
    except OSError as error:
        notify(f"what was read cannot be kept in {path.parent}: {error.strerror}")
        return
    notify(f"kept for the next run: {path}, {array.nbytes / 2**20:.0f} MiB")
