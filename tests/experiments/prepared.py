"""Data as tensorflow-datasets prepares it, written without TensorFlow."""

import json
import struct

import google_crc32c
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.image_classification import cifar


def prepare(root, records, classes):
    """Write cifar10/3.0.2 below a folder; records are rows of a label and three planes."""

    def examples(split):
        for i, record in enumerate(records[split]):
            image = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield {"id": f"{split}_{i:05d}", "image": image.copy(), "label": int(record[0])}

    write(root, cifar.Cifar10, {name: examples(name) for name in records}, classes)


def write(root, stock, splits, classes=None, **features):
    """Prepare a data set as its stock builder does, except that the examples are given.

    Args:
      root: tensorflow-datasets' directory.
      stock: the builder's class.
      splits: for each split its examples, whose images are arrays.
      classes: their names, where the stock builder reads them from the download.
      features: replace the stock builder's.
    """

    class Builder(stock, skip_registration=True):
        name = stock.name

        def _info(self):
            info = super()._info()
            return (
                info
                if not features
                else self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate(name) for name in splits}

        def _generate(self, split):
            for i, example in enumerate(splits[split]):
                # As a Pillow image, because tfds encodes an array with TensorFlow.
                image = example["image"]
                grey = image.ndim == 3 and image.shape[2] == 1
                example = example | {"image": Image.fromarray(image[..., 0] if grey else image)}
                others = {"id": f"{split}_{i}", "coarse_label": 0}
                asked = [name for name in self.info.features if name in others]
                yield i, {name: others[name] for name in asked} | example

        def _generate_examples(self, *args):
            raise NotImplementedError

    tfds.display_progress_bar(False)
    builder = Builder(data_dir=root, file_format="array_record")
    if classes is not None:
        builder.info.features["label"].names = list(classes)
    builder.download_and_prepare()
    return builder


def as_tfrecord(place):
    """Turn a prepared version into the format tfrecord."""
    for path in [*place.glob("*.array_record-*")]:
        reader = ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
        new = path.with_name(path.name.replace("array_record", "tfrecord"))
        new.write_bytes(b"".join(map(framed, records)))
        path.unlink()
    info = place / "dataset_info.json"
    described = json.loads(info.read_text())
    described["fileFormat"] = "tfrecord"
    for split in described["splits"]:
        template = split.get("filepathTemplate", "")
        split["filepathTemplate"] = template.replace("array_record", "tfrecord")
    info.write_text(json.dumps(described))


def framed(record):
    """Return a record of a TFRecord file: length, checksum, content, checksum."""

    def checksum(data):
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(record))
    return length + checksum(length) + record + checksum(record)
