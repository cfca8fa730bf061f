"""CIFAR-10 through tensorflow-datasets without TensorFlow: prepared data first, else a download."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import download
from experiments.data.images import pixels
from experiments.data.progress import bar
from experiments.data.types import (
    DataError,
    Dataset,
    NotAtHandError,
    Notify,
    Split,
    measured,
)

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
VERSION = "3.0.2"  # of tensorflow-datasets' data, and a part of its place
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SHAPE = (32, 32, 3)
FULL = {"train": 50_000, "test": 10_000}
CHUNK = 1000  # records read at a time


def load(place: str | Path | None = None, notify: Notify = print) -> Dataset:
    """Load CIFAR-10: prepared data if there is any, else downloaded and prepared.

    Args:
      place: tensorflow-datasets' directory; None for `TFDS_DATA_DIR`, or else
        `~/tensorflow_datasets`. The data is in its folder `cifar10/3.0.2`, where `tfds.data_source`
        also looks. If there is `downloads/cifar-10-binary.tar.gz`, nothing is downloaded.
      notify: called with what people should know.

    Returns:
      The data set, 50,000 training and 10,000 test images, all of them read and checked.

    Raises:
      NotAtHandError: it is not prepared here and cannot be downloaded.
      DataError: the data here is damaged or incomplete, or cannot be written.
    """
    root = _root(place)
    try:
        if not _place(root).exists():
            _prepare(root, notify)
        return _read(root, notify)
    except OSError as error:
        raise DataError(f"{error}; --data-dir or TFDS_DATA_DIR chooses another place") from error


def official_archive() -> download.Archive:
    """Return the archive, with the size and the SHA-256 that tensorflow-datasets has on record."""
    from tensorflow_datasets.image_classification import cifar

    known: Any = cifar.Cifar10.url_infos
    return download.Archive(URL, int(known[URL].size), known[URL].checksum)


def _root(data_dir: str | Path | None) -> Path:
    """Return the directory of all of tensorflow-datasets' data."""
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if root.exists() and not root.is_dir():
        raise DataError(f"the data directory {root} is a file; give a directory")
    for above in (root.parent, root.parent.parent):
        if root in (above / "cifar10", _place(above)) and _place(above).exists():
            raise DataError(
                f"the data directory is the one that holds cifar10: {above}, not {root}"
            )
    return root


def _place(root: Path) -> Path:
    """Return tensorflow-datasets' folder of CIFAR-10."""
    return root / "cifar10" / VERSION


def _prepare(root: Path, notify: Notify) -> None:
    """Write the prepared data, downloading the archive first unless it is here."""
    archive = official_archive()
    path = root / "downloads" / archive.name
    here = path.exists()
    try:
        if here:
            download.verify(path, archive)
        else:
            download.fetch(archive, path, notify)
    except download.DownloadError as error:
        if here:
            raise DataError(f"{path} is not {URL}: {error}. Remove or replace it") from error
        raise NotAtHandError(
            f"CIFAR-10 is not prepared in {_place(root)}, and {archive.url} cannot be downloaded: "
            f"{error}. Try again with a network, or put that file at {path}, or name the directory "
            "of prepared data with --data-dir or TFDS_DATA_DIR, or use --dataset digits"
        ) from error
    from experiments.data import cifar10_builder

    notify(f"preparing CIFAR-10 in {_place(root)} (once)")
    try:
        cifar10_builder.prepare(root, path, CLASSES)
    except Exception as error:  # of tfds, array_record and the disk
        if not _place(root).exists():  # else another process was quicker
            raise DataError(f"cannot prepare CIFAR-10 in {_place(root)}: {error}") from error


def _read(root: Path, notify: Notify) -> Dataset:
    """Read the prepared data, all of its records."""
    notify(f"reading CIFAR-10 from {_place(root)}")
    sources = _sources(root)
    counts = {name: len(source) for name, source in sources.items()}
    if counts != FULL:
        notify(f"note: this CIFAR-10 is not the full one: {counts} images instead of {FULL}")
    for source in sources.values():  # checking is quick, decoding is not
        _check(source)
    with bar("reading", sum(counts.values()), " images") as progress:
        train, test = (_read_split(sources[name], progress) for name in FULL)
    return measured("cifar10", train, test, CLASSES)


def _sources(root: Path) -> dict[str, Any]:
    """Return tensorflow-datasets' data source of each split."""
    import tensorflow_datasets as tfds

    place = _place(root)
    if not (place / "dataset_info.json").is_file():
        raise _damaged(place, "dataset_info.json is missing")
    try:
        sources: Any = tfds.data_source(
            "cifar10",
            split={name: name for name in FULL},
            data_dir=root,
            download=False,  # otherwise, without a network, it tries for minutes
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        return sources
    except NotImplementedError as error:
        raise DataError(
            f"{place} is not in the format array_record but in one that only TensorFlow reads; "
            "choose another --data-dir, and CIFAR-10 will be prepared there"
        ) from error
    except Exception as error:  # tfds reads JSON and protocol buffers, and looks splits up
        raise _damaged(place, error) from error


def _check(source: Any) -> None:
    """Check that every shard of a split is whole.

    Reading a shard checks its checksums; only dataset_info.json has the number of its records.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    info = source.dataset_info.splits[source.split]
    for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
        try:
            with contextlib.closing(ArrayRecordReader(str(path))) as reader:
                count = len(reader.read_all())
        except Exception as error:  # a RuntimeError, usually
            raise _damaged(path, error) from error
        if count != length:
            raise _damaged(path, f"it has {count} records, dataset_info.json says {length}")


def _read_split(source: Any, progress: Any) -> Split:
    """Return a split's images and labels."""
    images, labels = np.empty((len(source), *SHAPE), np.uint8), np.empty(len(source), np.int32)
    for start in range(0, len(source), CHUNK):
        chunk = slice(start, min(start + CHUNK, len(source)))
        try:
            images[chunk], labels[chunk] = _decoded(source, chunk)
        except Exception as error:  # of tfds, protocol buffers and Pillow
            raise _damaged(source.dataset_info.data_dir, error) from error
        progress.update(chunk.stop - chunk.start)
    return Split(images, labels)


def _decoded(source: Any, chunk: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of some records, checked."""
    examples = source.__getitems__(range(chunk.start, chunk.stop))
    images = np.stack([pixels(io.BytesIO(example["image"])) for example in examples])
    labels = np.array([example["label"] for example in examples])
    if images.shape[1:] != SHAPE:
        raise ValueError(f"images of shape {images.shape[1:]}, expected {SHAPE}")
    if not np.isin(labels, range(len(CLASSES))).all():
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, expected 0 to 9")
    return images, labels


def _damaged(path: str | os.PathLike[str], problem: object) -> DataError:
    """Return the error for a file or directory of the prepared data, with the remedy."""
    place = path if Path(path).is_dir() else Path(path).parent
    return DataError(
        f"the prepared CIFAR-10 is damaged: {path}: {problem}. Remove {place} and run again to "
        "have it prepared again, or choose another --data-dir"
    )
