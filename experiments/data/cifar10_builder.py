"""tensorflow-datasets' CIFAR-10, prepared without TensorFlow. Importing this imports tfds."""

import contextlib
import io
import tarfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from experiments.data.progress import bar

RECORD = 1 + 3 * 32 * 32  # the label, then the red, the green and the blue plane


class Cifar10(cifar.Cifar10, skip_registration=True):
    """The stock builder, except that it reads the archive and encodes images without TensorFlow.

    Name, version, features, keys and with them the records' order are the stock builder's:
    `tfds.data_source("cifar10")` reads what this one prepares.
    """

    name = "cifar10"

    def __init__(self, *, archive: Path, classes: Sequence[str], data_dir: Path):
        super().__init__(data_dir=data_dir, file_format="array_record")
        self._archive = archive
        features: Any = self.info.features
        features["label"].names = list(classes)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        files = self._cifar_info
        return {
            "train": self._generate_examples("train_", files.train_files),
            "test": self._generate_examples("test_", files.test_files),
        }

    def _generate_examples(
        self, split_prefix: str, filepaths: Sequence[str]
    ) -> Generator[Any, None, None]:
        records = _records(self._archive, [self._cifar_info.prefix + path for path in filepaths])
        with bar(f"preparing {split_prefix.strip('_')}", len(records), " images") as progress:
            for i, record in enumerate(records):
                image = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
                # As a Pillow image, because tfds encodes an array with TensorFlow.
                png = Image.fromarray(np.ascontiguousarray(image))
                yield i, {"id": f"{split_prefix}{i:05d}", "image": png, "label": int(record[0])}
                progress.update()


def prepare(root: Path, archive: Path, classes: Sequence[str]) -> None:
    """Write cifar10/3.0.2 below `root` from the binary archive, whole or not at all.

    Args:
      root: tensorflow-datasets' data directory.
      archive: the official cifar-10-binary.tar.gz, verified.
      classes: the names of the classes.
    """
    with _quiet():
        Cifar10(archive=archive, classes=classes, data_dir=root).download_and_prepare()


def _records(archive: Path, names: Sequence[str]) -> np.ndarray:
    """Return the records, (N, 3073) of uint8, of the archive's files with those names, in order."""
    with tarfile.open(archive) as tar:  # one pass: a .tar.gz has no random access
        content = {m.name: f.read() for m in tar if m.name in names and (f := tar.extractfile(m))}
    return np.frombuffer(b"".join(content[name] for name in names), np.uint8).reshape(-1, RECORD)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence tfds' bars, its announcements on standard output and absl's warnings."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(True)
        logging.set_verbosity(verbosity)
