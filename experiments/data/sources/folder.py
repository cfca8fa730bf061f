"""A folder of images: train/<class>/*.png, test/<class>/*.png."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from experiments.data.images import pixels
from experiments.data.types import DataError, Dataset, Notify, Split, measured

SUFFIXES = {".jpg", ".jpeg", ".png"}
LAYOUT = "expected PATH/train/<class>/*.jpg (or .jpeg, .png) and PATH/test/<class>/*.jpg"
SHOWN = 5  # problems listed in full; the rest is counted


def load(place: str | Path, notify: Notify = print) -> Dataset:
    """Load the images in `place`: train/<class>/*.jpg|jpeg|png, test/<class>/….

    The classes are the folders' names. Both splits must have the same classes, and all images the
    same size. Images are sorted by class and file name. Names that start with a dot and files of
    other kinds are ignored.

    Returns:
      The data set, named `folder:PATH`.

    Raises:
      DataError: folders are missing or empty, classes or sizes differ, or files cannot be read; the
        message names them.
    """
    root = Path(place).expanduser()
    train, test = (_classes(root / split) for split in ("train", "test"))
    _agree(root, train, test)
    notify(f"reading the images in {root}")
    paths = [file for split in (train, test) for files in split.values() for file in files]
    images = _read(paths)
    train_labels, test_labels = _labels(train), _labels(test)
    return measured(
        f"folder:{place}",
        Split(images[: len(train_labels)], train_labels),
        Split(images[len(train_labels) :], test_labels),
        tuple(train),
    )


def _classes(split: Path) -> dict[str, list[Path]]:
    """Return the image files of each class of a split, classes and files sorted by name."""
    if not split.is_dir():
        raise DataError(f"no folder {split}: {LAYOUT}")
    classes = {
        folder.name: [path for path in _visible(folder) if path.suffix.lower() in SUFFIXES]
        for folder in _visible(split)
        if folder.is_dir()
    }
    empty = [name for name, files in classes.items() if not files]
    if len(classes) < 2 or empty:
        got = (
            f"no images in {', '.join(empty[:SHOWN])}" if empty else f"{len(classes)} class folders"
        )
        raise DataError(f"{got} below {split}: {LAYOUT}, two classes or more")
    return classes


def _visible(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, without the hidden files that file managers leave."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _agree(root: Path, train: Iterable[str], test: Iterable[str]) -> None:
    """Raise unless both splits have the same classes."""
    only = {"train": sorted(set(train) - set(test)), "test": sorted(set(test) - set(train))}
    if any(only.values()):
        raise DataError(
            f"the classes in {root} differ between the splits: "
            f"only in train {only['train']}, only in test {only['test']}; "
            "every class needs images in both"
        )


def _labels(classes: dict[str, list[Path]]) -> np.ndarray:
    """Return the class numbers of a split's images, in the order of `_classes`."""
    return np.repeat(np.arange(len(classes), dtype=np.int32), [len(f) for f in classes.values()])


def _read(paths: Sequence[Path]) -> UInt8[np.ndarray, "N H W 3"]:
    """Read all images, in order; report all that are damaged or of another size at once."""
    images, first, problems = np.empty((len(paths), 0, 0, 3), np.uint8), None, []
    with ThreadPoolExecutor() as pool:
        for i, read in enumerate(pool.map(_pixels_or_problem, paths)):
            if isinstance(read, str):
                problems.append(read)
                continue
            if first is None:  # the first good image sets the size
                images, first = np.empty((len(paths), *read.shape), np.uint8), i
            if read.shape == images.shape[1:]:
                images[i] = read
            else:
                known = f"{paths[first]} is {_size(images[first])}"
                problems.append(f"{paths[i]}: {_size(read)}, but {known}")
    if problems:
        raise DataError(_summary(problems, len(paths)))
    return images


def _summary(problems: Sequence[str], total: int) -> str:
    """Describe what is wrong with the images, the first few in full."""
    rest = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    head = f"{len(problems)} of {total} images cannot be used; replace or remove them:"
    return "\n  ".join([head, *problems[:SHOWN], *rest])


def _pixels_or_problem(path: Path) -> np.ndarray | str:
    """Return the image, or what is wrong with its file."""
    try:
        return pixels(path)
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        return f"{path}: {error}"


def _size(image: np.ndarray) -> str:
    """Return width × height, as people write it."""
    return f"{image.shape[1]}×{image.shape[0]}"
