"""Data that tensorflow-datasets has prepared, read without TensorFlow."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.data.types import DataError, Dataset, Split, measured


def read(place: Path) -> Dataset:
    """Read all records of a prepared data set of images and labels, and check them.

    Args:
      place: the folder of one version, such as `cifar10/3.0.2`.

    Raises:
      DataError: a file is damaged, missing or in another format.
    """
    import tensorflow_datasets as tfds

    try:
        info: Any = tfds.builder_from_directory(place).info
    except Exception as error:  # tfds reads JSON and protocol buffers
        raise _damaged(place, error) from error
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"{place} is not in the format array_record but in one that only TensorFlow reads; "
            "choose another --data-dir"
        )
    train, test = (_read_split(info, info.splits[name]) for name in ("train", "test"))
    return measured(info.name, train, test, tuple(info.features["label"].names))


def _read_split(info: Any, split: Any) -> Split:
    """Return the images and labels of all shards of a split."""
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets import decode
    from tqdm import tqdm

    decoders = {"image": decode.SkipDecoding()}  # tfds asks for OpenCV on standard error
    images, labels, features = [], [], info.features
    for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
        try:
            # Reading checks the checksums. A shard that lost whole records passes that.
            with contextlib.closing(ArrayRecordReader(str(path))) as reader:
                records = reader.read_all()
            if len(records) != length:
                raise ValueError(f"it has {len(records)} records, dataset_info.json says {length}")
            for record in tqdm(records, f"reading {split.name}", leave=False, disable=None):
                example = features.deserialize_example_np(record, decoders=decoders)
                image = Image.open(io.BytesIO(example["image"])).convert("RGB")
                images.append(np.asarray(image))
                labels.append(example["label"])
                if images[-1].shape[:2] != features["image"].shape[:2]:
                    raise ValueError(f"an image has the shape {images[-1].shape}")
                if labels[-1] not in range(features["label"].num_classes):
                    raise ValueError(f"an image has the label {labels[-1]}")
        except Exception as error:  # of array_record, protocol buffers and Pillow
            raise _damaged(path, error) from error
    return Split(np.stack(images), np.array(labels, np.int32))


def _damaged(path: Path, problem: object) -> DataError:
    place = path if path.is_dir() else path.parent
    return DataError(
        f"the prepared data is damaged: {path}: {problem}. Remove {place} and prepare it again, or "
        "choose another --data-dir"
    )
