"""A folder of images: train/<class>/*.png, test/<class>/*.png."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

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
    if train.keys() != test.keys():
        raise DataError(
            f"the classes in {root} differ between the splits: only in train "
            f"{sorted(train.keys() - test)}, only in test {sorted(test.keys() - train)}; "
            "every class needs images in both"
        )
    notify(f"reading the images in {root}")
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
        got = f"no images in {', '.join(empty)}" if empty else f"{len(classes)} class folders"
        raise DataError(f"{got} below {split}: {LAYOUT}, two classes or more")
    return classes


def _visible(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, without the hidden files that file managers leave."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read(paths: Sequence[Path]) -> UInt8[np.ndarray, "N H W 3"]:
    """Read all images, in order; report all that are damaged or of another size at once."""
    with ThreadPoolExecutor() as pool:
        images: list[Any] = list(pool.map(_pixels_or_problem, paths))
    shape = next((image.shape for image in images if not isinstance(image, str)), None)
    problems = []
    for path, image in zip(paths, images, strict=True):
        if isinstance(image, str):
            problems.append(f"{path}: {image}")
        elif image.shape != shape:
            problems.append(f"{path}: its shape is {image.shape}, but the first image's {shape}")
    if problems:
        head = f"{len(problems)} of {len(paths)} images cannot be used; replace or remove them:"
        rest = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise DataError("\n  ".join([head, *problems[:SHOWN], *rest]))
    return np.stack(images)


def _pixels_or_problem(path: Path) -> UInt8[np.ndarray, "H W 3"] | str:
    """Return the image as RGB, grey tiled and transparency dropped; or what is wrong with it."""
    try:
        with Image.open(path) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return f"expected 8 bits a channel, got mode {image.mode!r}"  # Pillow would clip
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        return str(error)
