"""Scikit-learn's handwritten digits, which need no network: a stand-in for CIFAR-10."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from experiments.data.reading import in_memory
from experiments.data.types import Notify, Source

TRAIN_PER_CLASS = 140
TEST_PER_CLASS = 34  # 140 + 34 is the size of the smallest class


def load(place: str | Path | None = None, notify: Notify = print) -> Source:
    """Open real handwritten digits, in the shape of CIFAR-10's images.

    These are the 8×8 grey images that come with scikit-learn (the test part of the UCI "Optical
    Recognition of Handwritten Digits" data: 1,797 images by 13 writers), each enlarged to 32×32 by
    bilinear interpolation and tiled to three equal channels. They are small and quick to learn;
    accuracies on them say nothing about accuracies on CIFAR-10.

    The split is fixed: 140 training and 34 test images of each class, drawn with seed 0; 57 images
    of the larger classes are not used. The same writers are in both splits, which may flatter test
    accuracy.

    Returns:
      1,400 training and 340 test images, classes "0" to "9".
    """
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    images = np.stack([_enlarged(image) for image in pixels.reshape(-1, 8, 8)])
    labels = targets.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = [order[labels[order] == c][: TRAIN_PER_CLASS + TEST_PER_CLASS] for c in range(10)]
    train = np.sort(np.concatenate([places[:TRAIN_PER_CLASS] for places in by_class]))
    test = np.sort(np.concatenate([places[TRAIN_PER_CLASS:] for places in by_class]))
    return Source(
        "digits",
        in_memory(images[train], labels[train]),
        in_memory(images[test], labels[test]),
        tuple("0123456789"),
        augment="none",  # a mirrored digit is another one, or none
        whole=True,
    )


def _enlarged(image: Float[np.ndarray, "8 8"]) -> np.ndarray:
    """Return an image of values 0 to 16 as (32, 32, 3) of values 0 to 255."""
    grey = Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))
    return np.tile(np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR))[..., None], 3)
