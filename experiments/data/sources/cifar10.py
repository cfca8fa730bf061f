"""CIFAR-10: prepared by tensorflow-datasets if it is, otherwise downloaded."""

import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import prepared
from experiments.data.types import DataError, Dataset, NotAtHandError, Notify, Split, measured

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
RECORD = 1 + 3 * 32 * 32  # the label, then the red, the green and the blue plane
TIMEOUT = (5, 15)  # seconds to connect to an address, and of silence after that


def load(place: str | Path | None = None, notify: Notify = print) -> Dataset:
    """Load CIFAR-10, 50,000 training and 10,000 test images.

    Args:
      place: tensorflow-datasets' directory; None for `TFDS_DATA_DIR`, or else
        `~/tensorflow_datasets`. Prepared data is in its folder `cifar10/3.0.2`. Without that, the
        official archive is downloaded to `downloads/`, once.
      notify: called with what people should know.

    Raises:
      NotAtHandError: it is not prepared here and cannot be downloaded.
      DataError: the data here is damaged or incomplete, or cannot be written.
    """
    root = Path(place or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folder = root / "cifar10" / "3.0.2"
    if folder.exists():
        notify(f"reading CIFAR-10 from {folder}")
        return prepared.read(folder)
    archive = _download(root / "downloads" / URL.rpartition("/")[2])
    notify(f"reading CIFAR-10 from {archive}")
    with tarfile.open(archive) as tar:  # one pass: a .tar.gz has no random access
        files = {Path(m.name).name: f.read() for m in tar if (f := tar.extractfile(m))}
    train = b"".join(files[f"data_batch_{i}.bin"] for i in range(1, 6))
    return measured("cifar10", _split(train), _split(files["test_batch.bin"]), CLASSES)


def _download(path: Path) -> Path:
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
        pooch.retrieve(URL, SHA256, path.name, path.parent, downloader=downloader)
    except (requests.RequestException, ValueError) as error:  # ValueError: another SHA-256
        cause: BaseException = error
        while cause.__context__ is not None:  # "Connection refused", not its three wrappers
            cause = cause.__context__
        raise NotAtHandError(
            f"CIFAR-10 is not here, and {URL} cannot be downloaded: {cause}. Try again with a "
            f"network, or put that file at {path}, or name the directory of prepared data with "
            "--data-dir or TFDS_DATA_DIR, or use --dataset digits"
        ) from error
    except OSError as error:
        raise DataError(f"{error}; --data-dir or TFDS_DATA_DIR chooses another place") from error
    return path


def _split(records: bytes) -> Split:
    table = np.frombuffer(records, np.uint8).reshape(-1, RECORD)
    images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), table[:, 0].astype(np.int32))
