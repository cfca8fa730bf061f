"""A folder of images: train/<class>/*.png, test/<class>/*.png."""

import functools
import math
import os
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from experiments.data import pixels
from experiments.data.types import DataError, Dataset, Notify, Split, measured

LAYOUT = "expected PATH/train/<class>/*.jpg and PATH/test/<class>/*.jpg"
SHOWN = 5  # problems listed in full; the rest is counted


class Found(NamedTuple):
    """An image file, or a place that cannot be read, with the reason."""

    path: Path
    problem: str = ""


def load(place: str | Path, notify: Notify = print) -> Dataset:
    """Load the images in `place`: train/<class>/*.jpg, test/<class>/….

    The classes are the folders' names, with composed and decomposed accents taken as equal. Both
    splits must have the same classes, and all upright images the same size. Every file whose ending
    Pillow knows is read, in folders below the class's too, and links are followed. Images are
    sorted by class and path. Other files and hidden ones are passed over, in one line with their
    numbers.

    Returns:
      The data set, named `folder:PATH`.

    Raises:
      DataError: folders are missing or empty, classes or sizes differ, or files cannot be read
        without loss; the message names them.
    """
    root = Path(place).expanduser()
    passed: Counter[str] = Counter()
    train, test = (_classes(root / split, passed) for split in ("train", "test"))
    for path in _visible(root, passed):
        if path.name not in ("train", "test"):
            passed[f"{path.name}/" if path.is_dir() else _ending(path)] += 1
    if counts := [f"{n} {what}" for what, n in (+passed).most_common()]:
        notify(f"passed over in {shown(root)}: {_listed(counts)}")
    if train.keys() != test.keys():
        one, other = (
            _listed([repr(name) for name in sorted(a.keys() - b)]) or "none"
            for a, b in ((train, test), (test, train))
        )
        raise DataError(
            f"the classes in {shown(root)} differ between the splits: only in train {one}; only in "
            f"test {other}; every class needs images in both"
        )
    if len(train) < 2:
        raise DataError(
            f"{len(train)} class folders below {shown(root)}: {LAYOUT}, two classes or more"
        )
    notify(f"reading the images in {shown(root)}")
    images = _read([file for split in (train, test) for files in split.values() for file in files])
    train_labels, test_labels = (
        np.repeat(np.arange(len(split), dtype=np.int32), [len(files) for files in split.values()])
        for split in (train, test)
    )
    return measured(
        f"folder:{place}",
        Split(images[: len(train_labels)], train_labels),
        Split(images[len(train_labels) :], test_labels),
        tuple(train),
    )


def shown(path: Path) -> str:
    """Return a path for a message; one that cannot be printed as it is becomes a Python literal.

    >>> shown(Path("a/b.png")), shown(Path(os.fsdecode(b"caf\\xe9.png")))
    ('a/b.png', "'caf\\\\udce9.png'")
    """
    return text if (text := str(path)).isprintable() else repr(text)


def _classes(split: Path, passed: Counter[str]) -> dict[str, list[Found]]:
    """Return what is in each class of a split, classes and files sorted by name."""
    if not split.is_dir():
        raise DataError(f"no folder {shown(split)}: {LAYOUT}")
    above = frozenset(_identity(folder.stat()) for folder in (split, split.parent))
    classes: dict[str, list[Found]] = {}
    for folder in _visible(split, passed):
        if folder.exists() and not folder.is_dir():
            passed[f"{_ending(folder)} outside of the class folders"] += 1
            continue
        found = [*_walk(folder, above, passed)] or [Found(folder, "no images in it")]
        classes.setdefault(_composed(folder.name), []).extend(found)
    return {
        name: sorted(classes[name], key=lambda found: (_order(found.path, split), found.path))
        for name in sorted(classes)
    }


def _walk(top: Path, above: frozenset[tuple[int, int]], passed: Counter[str]) -> Iterator[Found]:
    """Yield the images in a folder and below it, and whatever there cannot be read."""
    waiting = [(top, above)]
    while waiting:
        path, above = waiting.pop()
        try:
            info = path.stat()  # of what a link leads to
            if stat.S_ISDIR(info.st_mode):
                if (this := _identity(info)) in above:
                    yield Found(path, "a link to a folder that it is in")
                else:
                    waiting += [(each, above | {this}) for each in _visible(path, passed)]
            elif path.suffix.lower() not in pixels.SUFFIXES:
                passed[_ending(path)] += 1
            elif stat.S_ISREG(info.st_mode):
                yield Found(path)
            else:  # opening a pipe would wait for ever
                yield Found(path, "a pipe, socket or device")
        except OSError as error:
            lost = os.path.islink(path) and isinstance(error, FileNotFoundError)
            yield Found(path, "a link that leads nowhere" if lost else _words(error))


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _visible(folder: Path, passed: Counter[str]) -> list[Path]:
    """Return what is in a folder without hidden files, which file managers leave."""
    paths = sorted(folder.iterdir())
    visible = [path for path in paths if not path.name.startswith(".")]
    passed["hidden"] += len(paths) - len(visible)
    return visible


def _composed(name: str) -> str:
    """Return a name in the form NFC; some systems store é as two characters."""
    return unicodedata.normalize("NFC", name)


def _order(path: Path, split: Path) -> tuple[str, ...]:
    """Return what files are sorted by, the same on all systems: the path below the class."""
    return tuple(map(_composed, path.relative_to(split).parts[1:]))


def _ending(path: Path) -> str:
    return path.suffix.lower() or "without ending"


def _listed(items: Sequence[str]) -> str:
    """Return the first items, and the number of the others.

    >>> _listed(["a", "b"]), _listed([*"abcdefg"])
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _read(files: Sequence[Found]) -> UInt8[np.ndarray, "N H W 3"]:
    """Read all images, in order; report everything that cannot be used at once."""
    # Pillow warns of huge images and damaged metadata, without the file's name.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        first = next((image for f in files if not isinstance(image := _pixels(f), str)), None)
        images = _room(len(files), (0, 0, 3) if first is None else first.shape)
        said = list(pool.map(functools.partial(_put, images, files), range(len(files))))
    problems = [f"{shown(f.path)}: {words}" for f, words in zip(files, said, strict=True) if words]
    if problems:
        head = f"{len(problems)} of {len(files)} files cannot be used; replace or remove them:"
        rest = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError("\n  ".join([head, *problems[:SHOWN], *rest]))
    return images


def _put(images: UInt8[np.ndarray, "N H W 3"], files: Sequence[Found], place: int) -> str:
    """Put one image into its place in the array; return the reason if it cannot be used."""
    image = _pixels(files[place])
    if isinstance(image, str):
        return image
    if image.shape != images.shape[1:]:
        return f"its shape is {image.shape}, but the first image's {images.shape[1:]}"
    images[place] = image
    return ""


def _room(count: int, shape: tuple[int, ...]) -> UInt8[np.ndarray, "N H W 3"]:
    """Return the array for all images, if the machine has the memory for it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = count * math.prod(shape)
    if size > memory:
        raise DataError(
            f"{count} images of {shape[0]}×{shape[1]} take {size / 2**30:.1f} GiB, and this "
            f"machine has {memory / 2**30:.1f} GiB: make the images smaller, 32×32 for example"
        )
    return np.empty((count, *shape), np.uint8)


def _pixels(found: Found) -> UInt8[np.ndarray, "H W 3"] | str:
    """Return the image as RGB, or the reason why it cannot be used."""
    try:
        return found.problem or pixels.pixels(found.path)
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        return _words(error)


def _words(error: Exception) -> str:
    """Return what an error says, without the path that OSError adds."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "Pillow does not know its format"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
