"""CIFAR-100, 50,000 training and 10,000 test images of 100 classes: prepared, or downloaded."""

from pathlib import Path

from experiments.data import cifar
from experiments.data.types import Notify, Source

ARCHIVE = cifar.Archive(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    labels=2,  # the superclass, and the class
    train=["train.bin"],
    test="test.bin",
    classes="fine_label_names.txt",
)


def load(place: str | Path | None = None, notify: Notify = print) -> Source:
    """Open CIFAR-100; `cifar.load` has the details."""
    return cifar.load(ARCHIVE, place, notify)
