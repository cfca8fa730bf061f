"""The download of one large file from a host that may be silent, slow or break off."""

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Generator
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from experiments.data.progress import bar
from experiments.data.types import Notify

ANSWER_SECONDS = 10.0
"""The time for the host to send the first byte."""
STALL_SECONDS = 60.0
"""The longest silence of a download that has begun."""


class DownloadError(Exception):
    """The file could not be fetched; the message says why, in a phrase."""


class Archive(NamedTuple):
    """A file to download, and how to know that it is the right one."""

    url: str
    size: int
    """In bytes."""
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


def fetch(archive: Archive, path: Path, notify: Notify = print) -> None:
    """Download an archive, with progress; it appears at `path` whole and verified, or not at all.

    Folders are made as needed, once the host has answered.

    Raises:
      DownloadError: the host does not answer within `ANSWER_SECONDS`, the connection breaks off or
        is silent for `STALL_SECONDS`, or the file is not the archive.
      OSError: `path` cannot be written.
    """
    first, rest = _answer(archive)
    with contextlib.closing(rest):
        notify(f"downloading {archive.url} ({archive.size / 2**20:.0f} MiB) to {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file, bar("downloading", archive.size, "B") as progress:
                for chunk in itertools.chain([first], rest):
                    file.write(chunk)
                    progress.update(len(chunk))
            verify(part, archive)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def verify(path: Path, archive: Archive) -> None:
    """Raise DownloadError unless the file at `path` is the archive: its size, then its SHA-256."""
    size = path.stat().st_size
    if size != archive.size:
        raise DownloadError(f"it has {size:,} bytes instead of {archive.size:,}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != archive.sha256:
        raise DownloadError(f"its SHA-256 is {sha256} instead of {archive.sha256}")


def _answer(archive: Archive) -> tuple[bytes, Generator[bytes, None, None]]:
    """Return the archive's first byte, if it comes in time, and the rest in chunks.

    The request runs in a thread, because a socket's timeout does not cover everything that can
    hang: the look-up of the name, one address after the other, redirections, trickling headers.
    """
    answer: Future[tuple[bytes, Generator[bytes, None, None]]] = Future()

    def ask() -> None:
        chunks = _chunks(archive)
        try:
            answer.set_result((next(chunks), chunks))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()  # a daemon, so as not to delay the exit
    try:
        return answer.result(timeout=ANSWER_SECONDS)
    except TimeoutError:
        raise DownloadError(f"no answer within {ANSWER_SECONDS:g} seconds") from None


def _chunks(archive: Archive) -> Generator[bytes, None, None]:
    """Yield what the host sends: the first byte alone, because a slow host counts as answering."""
    import requests
    import urllib3

    try:
        limits = (ANSWER_SECONDS, STALL_SECONDS)
        with requests.get(archive.url, stream=True, timeout=limits) as response:
            response.raise_for_status()
            length = response.headers.get("Content-Length")
            if length not in (None, str(archive.size)):
                raise DownloadError(f"the host offers {length} bytes instead of {archive.size}")
            # Undecoded: some hosts label a .gz file as a compressed transfer of a .tar.
            yield response.raw.read(1, decode_content=False)
            yield from response.raw.stream(2**14, decode_content=False)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise DownloadError(str(_root(error))) from error


def _root(error: BaseException) -> BaseException:
    """Return the first error of a chain: `Connection refused`, not its three wrappers."""
    while error.__context__ is not None:
        error = error.__context__
    return error
