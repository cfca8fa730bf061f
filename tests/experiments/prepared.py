"""CIFAR-10 as tensorflow-datasets prepares it, written without TensorFlow."""

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar


class Cifar10(cifar.Cifar10, skip_registration=True):
    """The stock builder, except that the examples are given."""

    name = "cifar10"

    def __init__(self, data_dir, records, classes):
        super().__init__(data_dir=data_dir, file_format="array_record")
        self.records = records
        self.info.features["label"].names = list(classes)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name, None) for name in self.records}

    def _generate_examples(self, split_prefix, filepaths):
        for i, record in enumerate(self.records[split_prefix]):
            # As a Pillow image, because tfds encodes an array with TensorFlow.
            image = Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0).copy())
            yield i, {"id": f"{split_prefix}_{i:05d}", "image": image, "label": int(record[0])}


def prepare(root, records, classes):
    """Write cifar10/3.0.2 below a folder; records are rows of a label and three planes."""
    tfds.display_progress_bar(False)
    Cifar10(root, records, classes).download_and_prepare()
