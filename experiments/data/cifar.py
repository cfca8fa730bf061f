"""CIFAR's archives: downloaded once, verified, and read."""

import contextlib
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import prepared
from experiments.data.reading import in_memory
from experiments.data.types import DataError, NotAtHandError, Notify, Pool, Source

TIMEOUT = (5, 15)  # seconds to connect to an address, and of silence after that


class Archive(NamedTuple):
    """An official archive in binary form.

    Each record is a few bytes of labels, the last of which is the class, and the red, the green and
    the blue plane of 32×32 pixels.
    """

    name: str
    url: str
    sha256: str
    labels: int
    train: Sequence[str]
    test: str
    classes: str


def load(archive: Archive, place: str | Path | None, notify: Notify) -> Source:
    """Open the data: as tensorflow-datasets has prepared it if it has, else from the archive.

    Images are normalised by all training images, so that both ways give the same.

    Args:
      archive: the official one; it is downloaded to `downloads/`, once.
      place: tensorflow-datasets' directory; None for the usual one.
      notify: called with what people should know.

    Raises:
      NotAtHandError: it is not prepared here and cannot be downloaded.
      DataError: the data here is damaged or incomplete, or cannot be written.
    """
    root = prepared.root(place)
    if version := prepared.newest(root / archive.name):
        return prepared.read(version, notify)._replace(whole=True)
    there = next((path for path in (root, *root.parents) if path.exists()), root)
    if place is not None and there != root and there.is_dir():  # it may be mistyped
        raise NotAtHandError(
            f"{root} is not a folder: make it, name another by --data-dir, or use --dataset digits"
        )
    if not there.is_dir():
        raise DataError(f"{there} is a file; --data-dir or TFDS_DATA_DIR chooses another place")
    path = root / "downloads" / archive.url.rpartition("/")[2]
    _download(archive, path)
    notify(f"reading {archive.name} from {path}")
    with tarfile.open(path) as tar:  # one pass: a .tar.gz has no random access
        files = {Path(m.name).name: f.read() for m in tar if (f := tar.extractfile(m))}
    train = _pool(archive, b"".join(files[name] for name in archive.train))
    classes = tuple(files[archive.classes].decode().split())
    test = _pool(archive, files[archive.test])
    return Source(archive.name, train, test, classes, whole=True)


def _download(archive: Archive, path: Path) -> None:
    """Download the archive, unless it is here; it appears whole and verified, or not at all."""
    import pooch
    import requests

    downloader: Any = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        timeout=TIMEOUT,
        # Some hosts label a .gz file as a compressed transfer, which would be unpacked.
        headers={"Accept-Encoding": "identity"},
    )
    try:
        pooch.retrieve(archive.url, archive.sha256, path.name, path.parent, downloader=downloader)
    except (requests.RequestException, ValueError) as error:  # ValueError: another SHA-256
        cause: BaseException = error
        while cause.__context__ is not None:  # "Connection refused", not its three wrappers
            cause = cause.__context__
        raise NotAtHandError(
            f"{archive.name} is not here, and {archive.url} cannot be downloaded: {cause}. Try "
            f"again with a network, or put that file at {path}, or name the directory of prepared "
            "data with --data-dir or TFDS_DATA_DIR, or use --dataset digits"
        ) from error
    except OSError as error:
        raise DataError(f"{error}; --data-dir or TFDS_DATA_DIR chooses another place") from error
    finally:
        with contextlib.suppress(OSError):  # it holds the archive, or could not be made
            path.parent.rmdir()


def _pool(archive: Archive, records: bytes) -> Pool:
    table = np.frombuffer(records, np.uint8).reshape(-1, archive.labels + 3 * 32 * 32)
    images = table[:, archive.labels :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return in_memory(images, table[:, archive.labels - 1].astype(np.int32))
