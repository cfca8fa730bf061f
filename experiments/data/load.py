"""Any data set by its name, and the stand-in where CIFAR-10 cannot be had."""

import functools
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from experiments.data import prepared, sources
from experiments.data.kept import kept
from experiments.data.subset import subset
from experiments.data.types import (
    Augment,
    DataError,
    Dataset,
    Images,
    Moments,
    NotAtHandError,
    Notify,
    Places,
    Pool,
    Source,
    Split,
    moments,
)

SIDE, LARGEST = 64, 128
"""The side to which images of different sizes, or larger ones, are resized by default."""


def load(
    name: str = "auto",
    *,
    data_dir: str | Path | None = None,
    train_size: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
    augment: str = "auto",
    notify: Notify = print,
) -> Dataset:
    """Load a data set into memory: the images that are used, and no others.

    Args:
      name: one of
        `auto`: CIFAR-10; if it is neither here nor can be downloaded and no `data_dir` is given,
          the digits in its place, with a notice.
        `folder:PATH`: PATH/train/<class>/*.jpg and PATH/test/<class>/…, or PATH/<class>/…, of any
          format of Pillow.
        `tfds:NAME`: data that tensorflow-datasets has prepared.
        or the name of a file in `experiments/data/sources`, such as `cifar10` or `digits`.
      data_dir: where its files are; None for the usual place.
      train_size: the number of training images, a class-balanced choice; None for all.
      seed: of that choice.
      image_size: the side to which images are resized and cut; None to leave them if they have one
        size that is not large.
      augment: `mirror`, `shift` or `none`; `auto` for what suits the data.
      notify: called with what people should know.

    Returns:
      The data set; its `name` says what was really loaded.

    Raises:
      DataError: it cannot be had; the message says what to do.

    >>> load("digits", train_size=100).train.images.shape
    (100, 32, 32, 3)
    """
    try:
        source = _source(name, data_dir, notify)
        chosen = subset(source.train.labels, train_size, seed, len(source.classes))
        every = np.arange(len(source.test.labels))
        side = image_size or _side(source, chosen, every, notify)
        train, test = _read(((source.train, chosen), (source.test, every)), side, notify)
        statistics = _moments(source, train.images, side, notify)
    except OSError as error:
        raise DataError(f"--dataset {name} cannot be read: {error}") from error
    varied: Any = augment if augment in get_args(Augment) else source.augment
    return Dataset(source.name, train, test, source.classes, *statistics, varied)


def _source(name: str, data_dir: str | Path | None, notify: Notify) -> Source:
    """Open a data set by its name."""
    kind, colon, rest = name.partition(":")
    if colon and kind == "folder":
        return _module("folder").load(rest, notify)
    if colon and kind == "tfds" and rest:
        return prepared.load(rest, data_dir, notify)
    found = [module.name for module in pkgutil.iter_modules(sources.__path__)]
    known = ["auto", *(source for source in found if source != "folder")]
    if name not in known:
        raise DataError(
            f"unknown dataset {name!r}: expected {', '.join(known)}, tfds:NAME or folder:PATH for "
            "--dataset"
        )
    if name != "auto" or data_dir is not None:  # a directory that was given is meant
        return _module("cifar10" if name == "auto" else name).load(data_dir, notify)
    try:
        return _module("cifar10").load(None, notify)
    except NotAtHandError as error:
        notify(
            "THIS IS NOT CIFAR-10 but scikit-learn's handwritten digits, a far easier task: "
            f"{error}"
        )
        return _module("digits").load()


def _module(name: str) -> Any:
    return importlib.import_module(f"{sources.__name__}.{name}")


def _side(source: Source, train: Places, test: Places, notify: Notify) -> int | None:
    """Return the side to which images have to be resized; None if they can stay as they are."""
    sizes = {source.train.size(train), source.test.size(test)}
    size = sizes.pop()
    if not sizes and size and max(size) <= LARGEST:
        return None
    what = f"images of {size[0]}×{size[1]}" if size and not sizes else "images of different sizes"
    notify(
        f"{what}: the shorter side becomes {SIDE} and the middle is cut out; --image-size chooses "
        "another"
    )
    return SIDE


def _read(
    parts: Sequence[tuple[Pool, Places]], side: int | None, notify: Notify
) -> Iterator[Split]:
    """Read parts of pools; what is wrong with any of them is one error."""
    read, problems = [], []
    for pool, places in parts:
        try:
            images = functools.partial(pool.read, places, side)
            if pool.identity is None:
                read.append(images())
            else:
                what = f"images {side} {places.tolist()} {pool.identity}"
                read.append(kept(what, images, notify))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    for images, (pool, places) in zip(read, parts, strict=True):
        yield Split(images, pool.labels[places])


def _moments(source: Source, used: Images, side: int | None, notify: Notify) -> Moments:
    """Return the statistics of all training images, or of those that are used."""
    pool, every = source.train, np.arange(len(source.train.labels))
    if not source.whole or len(used) == len(every):
        return moments(used)

    def measured() -> np.ndarray:
        return np.stack(moments(pool.read(every, side)))

    if pool.identity is None:
        mean, std = measured()
    else:
        mean, std = kept(f"moments {side} {pool.identity}", measured, lambda _: None, pays=0)
    return mean, std
