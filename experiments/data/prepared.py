"""Data that tensorflow-datasets has prepared, read without TensorFlow."""

import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from experiments.data import reading, records
from experiments.data.kept import kept
from experiments.data.subset import held_out
from experiments.data.types import (
    Augment,
    DataError,
    Images,
    NotAtHandError,
    Notify,
    Places,
    Pool,
    Source,
)

TESTS = ("test", "validation", "valid", "val", "dev")
"""The splits that can be the test, the best first."""
# A mirrored digit or letter is another one, or none; the others lie or stand one way.
ONE_WAY = ("mnist", "svhn", "digit", "omniglot", "cmaterdb", "gtsrb", "quickdraw")


class Files(NamedTuple):
    """The files of a split, the names of its two features, and the number of classes."""

    name: str
    paths: Sequence[Path]
    lengths: Sequence[int]
    layout: str
    image: str
    label: str
    classes: int


def root(place: str | Path | None) -> Path:
    """Return tensorflow-datasets' directory: the given one, TFDS_DATA_DIR, or the usual one."""
    return Path(place or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def newest(place: Path) -> Path | None:
    """Return the folder of the newest version in a data set's folder; None if it has none."""
    versions = [each for each in _folders(place) if re.fullmatch(r"\d+\.\d+\.\d+", each.name)]
    return max(versions, key=lambda v: [*map(int, v.name.split("."))], default=None)


def load(name: str, place: str | Path | None, notify: Notify) -> Source:
    """Open a prepared data set by its name, such as `food101` or `NAME/CONFIG`.

    Raises:
      NotAtHandError: it is not prepared here.
      DataError: it cannot be used.
    """
    top = root(place)
    if version := newest(top / name):
        return read(version, notify)
    configs = [each.name for each in _folders(top / name) if newest(each)]
    if configs:
        wanted = ", ".join(f"tfds:{name}/{config}" for config in configs)
        raise DataError(f"tfds:{name} has several configurations in {top}; choose from {wanted}")
    here = [each.name for each in _folders(top) if newest(each)]
    raise NotAtHandError(
        f"tfds:{name} is not prepared in {top} ({', '.join(here) or 'nothing'} is). Name the "
        "directory of prepared data with --data-dir or TFDS_DATA_DIR; where TensorFlow is "
        f"installed, `tfds build {name} --data_dir {top}` prepares it"
    )


def read(place: Path, notify: Notify) -> Source:
    """Open a prepared data set of images and labels, and read the labels.

    The test is the split `test`, or else `validation`, if its images have labels; without either a
    fifth of the training images.

    Args:
      place: the folder of one version, such as `cifar10/3.0.2`.
      notify: called with what people should know.

    Raises:
      DataError: a file is damaged, missing or in another format, or the data does not classify
        images.
    """
    import tensorflow_datasets as tfds

    try:
        info: Any = tfds.builder_from_directory(place).info
        splits = {name: info.splits[name] for name in info.splits}
        paths = {name: [Path(path) for path in split.filepaths] for name, split in splits.items()}
    except Exception as error:  # tfds reads JSON and protocol buffers
        raise _damaged(place, error) from error
    notify(f"reading {info.name} from {place}")
    layout = info.file_format.value if info.file_format else "unknown"
    if layout not in records.LAYOUTS:
        raise DataError(
            f"{place} is in the format {layout}; expected {' or '.join(records.LAYOUTS)}. Prepare "
            "it again with file_format='array_record', or choose another --data-dir"
        )
    image, label = _features(info, place)
    size = info.features[image].shape[:2]
    names = tuple(info.features[label].names)

    def pool(name: str) -> Pool:
        lengths = splits[name].shard_lengths
        files = Files(name, paths[name], lengths, layout, image, label, len(names))
        return _pool(files, None if None in size else size, info.name, notify)

    if "train" not in splits:
        raise DataError(f"{place} has no split train, but only {', '.join(splits)}")
    train = pool("train")
    if (train.labels < 0).any():
        raise DataError(f"{place} has training images without labels")
    tests = (pool(name) for name in TESTS if name in splits)
    test = next((each for each in tests if (each.labels >= 0).all()), None)
    if test is None:
        train, test = held_out(train, len(names))
        notify(
            f"{info.name} has no labelled test images: a fifth of each class, drawn with seed 0, "
            "is the test"
        )
    augment: Augment = "shift" if any(word in info.name for word in ONE_WAY) else "mirror"
    return Source(info.name, train, test, names, augment)


def _folders(place: Path) -> list[Path]:
    return sorted(each for each in place.iterdir() if each.is_dir()) if place.is_dir() else []


def _features(info: Any, place: Path) -> tuple[str, str]:
    """Return the names of the image and of the label."""
    import tensorflow_datasets as tfds

    kinds = tfds.features.Image, tfds.features.ClassLabel
    features = dict(info.features.items())
    found = [[n for n, f in features.items() if isinstance(f, kind)] for kind in kinds]
    pair = info.supervised_keys
    if not (isinstance(pair, tuple) and len(pair) == 2 and pair[0] in found[0]):
        pair = tuple(names[0] for names in found if len(names) == 1)
    if len(pair) != 2 or pair[1] not in found[1]:
        raise DataError(
            f"{place} does not classify images: expected an Image and a ClassLabel, got "
            + ", ".join(f"{name} ({type(f).__name__})" for name, f in features.items())
        )
    image = features[pair[0]]
    if image.np_dtype != np.uint8 or image.shape[2] not in (1, 3):
        what = f"{np.dtype(image.np_dtype).name} with {image.shape[2]} channels"
        raise DataError(f"{place} has images of {what}; expected grey or RGB of 8 bits")
    return pair


def _pool(files: Files, size: tuple[int, int] | None, name: str, notify: Notify) -> Pool:
    """Return the pool of a split, whose labels are read."""
    states = [path.stat() if path.exists() else None for path in files.paths]
    dated = [state and (state.st_size, state.st_mtime_ns) for state in states]
    identity = repr((files, dated))
    labels = kept(f"labels {identity}", lambda: _labels(files), notify)

    def read_images(places: Places, side: int | None) -> Images:
        square = (side, side) if side else size
        assert square is not None  # `size` said so, and `load` gives a side

        def decode(item: tuple[Path, bytes]) -> UInt8[np.ndarray, "H W 3"]:
            image = Image.open(io.BytesIO(_example(item[1])[files.image].bytes_list.value[0]))
            if size and image.size != size[::-1]:
                raise ValueError(f"an image has the shape {image.size[::-1]}, expected {size}")
            if side:
                image.draft("RGB", (2 * side, 2 * side))  # JPEG is quicker to decode at its eighths
            image = image.convert("RGB")
            return np.asarray(reading.square(image, side) if side else image)

        chosen = _records(files, places)
        images, problems = reading.filled(chosen, len(places), square, decode, name, notify)
        for (path, _), error in problems:
            raise _damaged(path, error) from error
        return images

    return Pool(labels, lambda places: size, read_images, identity)


def _labels(files: Files) -> Int32[np.ndarray, " N"]:
    """Return the labels of all records, of which each file has as many as dataset_info.json says.

    Reading checks the checksums. A shard that lost whole records passes that.
    """
    labels = []
    for path, length in zip(files.paths, files.lengths, strict=True):
        try:
            with records.opened(path, files.layout) as shard:
                if shard.length != length:
                    raise ValueError(
                        f"it has {shard.length} records, dataset_info.json says {length}"
                    )
                for record in shard.records(range(length)):
                    label = _example(record)[files.label].int64_list.value[0]
                    if not -1 <= label < files.classes:  # -1: not known
                        raise ValueError(f"an image has the label {label}")
                    labels.append(label)
        except Exception as error:  # of array_record, protocol buffers and the system
            raise _damaged(path, error) from error
    return np.array(labels, np.int32)


def _records(files: Files, places: Places) -> Iterator[tuple[Path, bytes]]:
    """Yield the records at these places of the split, each with the path of its file."""
    ends = np.cumsum(files.lengths)
    for path, end, length in zip(files.paths, ends, files.lengths, strict=True):
        inside = places[(places >= end - length) & (places < end)] - (end - length)
        if len(inside):
            with records.opened(path, files.layout) as shard:
                for record in shard.records(inside):
                    yield path, record


def _example(record: bytes) -> Any:
    """Return the features of a record, by name."""
    from tensorflow_datasets.proto import tf_example_pb2

    proto: Any = tf_example_pb2
    return proto.Example.FromString(record).features.feature


def _damaged(path: Path, problem: object) -> DataError:
    place = path if path.is_dir() else path.parent
    return DataError(
        f"the prepared data is damaged: {path}: {problem}. Remove {place} and prepare it again, or "
        "choose another --data-dir"
    )
