"""CIFAR-10, 50,000 training and 10,000 test images: prepared, or downloaded."""

from pathlib import Path

from experiments.data import cifar
from experiments.data.types import Notify, Source

ARCHIVE = cifar.Archive(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    labels=1,
    train=[f"data_batch_{i}.bin" for i in range(1, 6)],
    test="test_batch.bin",
    classes="batches.meta.txt",
)


def load(place: str | Path | None = None, notify: Notify = print) -> Source:
    """Open CIFAR-10; `cifar.load` has the details."""
    return cifar.load(ARCHIVE, place, notify)
