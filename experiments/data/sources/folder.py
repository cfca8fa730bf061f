"""A folder of images: train/<class>/*.jpg and test/<class>/*.jpg, or <class>/*.jpg."""

import functools
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
from experiments.data.reading import filled
from experiments.data.subset import held_out
from experiments.data.types import DataError, Images, Notify, Places, Pool, Source

LAYOUT = "expected PATH/train/<class>/*.jpg and PATH/test/<class>/*.jpg, or PATH/<class>/*.jpg"
TESTS = ("test", "validation", "valid", "val")  # folders that can be the test, the best first
SHOWN = 5  # problems listed in full; the rest is counted
Classes = dict[str, list["Found"]]


class Found(NamedTuple):
    """An image file, or a place that cannot be read, with the reason."""

    path: Path
    problem: str = ""


def load(place: str | Path, notify: Notify = print) -> Source:
    """Find the images in `place`: train/<class>/*.jpg and test/<class>/…, or <class>/*.jpg.

    The classes are the folders' names, with composed and decomposed accents taken as equal. Both
    splits must have the same classes. The test may also be named validation, valid or val; without
    a folder train, a fifth of each class's images is the test. Every file whose ending Pillow knows
    is taken, in folders below the class's too, and links are followed. Images are sorted by class
    and path. Other files and hidden ones are passed over, in one line with their numbers.

    Returns:
      The data set, named `folder:PATH`.

    Raises:
      DataError: folders are missing or empty, or classes differ; and from reading images, files
        cannot be read without loss, or sizes differ. The message names them.
    """
    root = Path(place).expanduser()
    if not place:
        raise DataError(f"folder: names no folder; {LAYOUT}")
    if not root.is_dir():
        raise DataError(f"no folder {shown(root)}: {LAYOUT}")
    passed: Counter[str] = Counter()
    if is_split := (root / "train").is_dir():
        names = ["train", next((name for name in TESTS if (root / name).is_dir()), "test")]
        splits = [_classes(root / name, passed) for name in names]
        for path in _visible(root, passed):
            if path.name not in names:
                passed[f"{path.name}/" if path.is_dir() else _ending(path)] += 1
    else:
        splits = [_classes(root, passed)]
    if counts := [f"{n} {what}" for what, n in (+passed).most_common()]:
        notify(f"passed over in {shown(root)}: {_listed(counts)}")
    if splits[0].keys() != splits[-1].keys():
        raise _differing(root, *splits)
    classes = tuple(splits[0])
    if len(classes) < 2:
        raise DataError(
            f"{len(classes)} class folders below {shown(root)}: {LAYOUT}, two classes or more"
        )
    if not is_split and (single := _single(splits[0])):
        raise DataError(
            f"{shown(root)}: {_listed(single)} has 1 image; every class needs two or more, of "
            f"which one is for the test, or give train and test apart: {LAYOUT}"
        )
    pools = [_pool(split, shown(root), notify) for split in splits]
    train, test = pools if is_split else held_out(pools[0], len(classes))
    told = f"{len(train.labels):,} training and {len(test.labels):,} test images"
    how = "" if is_split else ", a fifth of each class, drawn with seed 0"
    notify(f"{shown(root)}: {len(classes)} classes ({_listed(classes)}), {told}{how}")
    return Source(f"folder:{place}", train, test, classes)


def _single(classes: Classes) -> list[str]:
    """Return the classes of one image; one that cannot be read is said when it is read."""
    return [
        f"class {name!r}"
        for name, found in classes.items()
        if len(found) == 1 and not found[0].problem
    ]


def _differing(root: Path, train: Classes, test: Classes) -> DataError:
    one, other = (
        _listed([repr(name) for name in sorted(a.keys() - b)]) or "none"
        for a, b in ((train, test), (test, train))
    )
    return DataError(
        f"the classes in {shown(root)} differ between the splits: only in train {one}; only in "
        f"test {other}; every class needs images in both"
    )


def shown(path: Path) -> str:
    """Return a path for a message; one that cannot be printed as it is becomes a Python literal.

    >>> shown(Path("a/b.png")), shown(Path(os.fsdecode(b"caf\\xe9.png")))
    ('a/b.png', "'caf\\\\udce9.png'")
    """
    return text if (text := str(path)).isprintable() else repr(text)


def _classes(split: Path, passed: Counter[str]) -> Classes:
    """Return what is in each class of a split, classes and files sorted by name."""
    if not split.is_dir():
        raise DataError(f"no folder {shown(split)}: {LAYOUT}")
    above = frozenset(_identity(folder.stat()) for folder in (split, split.parent))
    classes: Classes = {}
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


def _pool(split: Classes, what: str, notify: Notify) -> Pool:
    """Return the pool of a split's files."""
    files = [file for found in split.values() for file in found]
    labels = np.repeat(np.arange(len(split), dtype=np.int32), [*map(len, split.values())])

    def sizes(places: Places) -> tuple[int, int] | None:
        with ThreadPoolExecutor() as threads:
            some = {*threads.map(_size, (files[place] for place in places))} - {None}
        return some.pop() if len(some) == 1 else None

    def read(places: Places, side: int | None) -> Images:
        chosen = [files[place] for place in places]
        if side:
            size = side, side
        else:
            size = next((size for file in chosen if (size := _size(file))), (1, 1))
        # Pillow warns of huge images and damaged metadata, without the file's name.
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            decode = functools.partial(_pixels, side=side)
            images, problems = filled(chosen, len(chosen), size, decode, what, notify)
        if problems:
            head = f"{len(problems)} of {len(chosen)} files cannot be used; replace or remove them:"
            lines = [f"{shown(file.path)}: {_words(error)}" for file, error in problems[:SHOWN]]
            rest = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            raise DataError("\n  ".join([head, *lines, *rest]))
        return images

    return Pool(labels, sizes, read, repr([_dated(file) for file in files]))


def _dated(found: Found) -> tuple[str, int, int] | None:
    """Return what changes when a file does."""
    try:
        info = found.path.stat()
    except OSError:
        return None
    return str(found.path.resolve()), info.st_size, info.st_mtime_ns


def _size(found: Found) -> tuple[int, int] | None:
    """Return the size of an image; None if it cannot be read."""
    try:
        return None if found.problem else pixels.size(found.path)
    except Exception:  # Pillow's decoders raise many types for damaged files
        return None


def _pixels(found: Found, side: int | None) -> UInt8[np.ndarray, "H W 3"]:
    if found.problem:
        raise ValueError(found.problem)
    return pixels.pixels(found.path, side)


def _words(error: Exception) -> str:
    """Return what an error says, without the path that OSError adds."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "Pillow does not know its format"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
