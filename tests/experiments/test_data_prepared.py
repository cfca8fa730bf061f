"""Data sets that tensorflow-datasets has prepared, in both of its formats, and those it has not."""

import contextlib
import re
import shutil
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import data
from experiments.data import records
from experiments.data.types import NotAtHandError
from tests.experiments.prepared import as_tfrecord, framed, write

RNG = np.random.default_rng(0)


def examples(count, size, channels, classes):
    """Noise, of one size or, for a range, of different ones; each class has images."""
    for i in range(count):
        shape = size if isinstance(size, tuple) else RNG.integers(size.start, size.stop, 2)
        yield {"image": RNG.integers(0, 256, (*shape, channels), np.uint8), "label": i % classes}


CIFAR, GARMENTS, HOUSES = (((32, 32), 3, 100), ((28, 28), 1, 10), ((32, 32), 3, 10))
PHOTOGRAPHS = (range(40, 90), 3, 101)
STOCK = {
    "cifar100": ({"train": (200, *CIFAR), "test": (100, *CIFAR)}, 32, "mirror"),
    "fashion_mnist": ({"train": (40, *GARMENTS), "test": (20, *GARMENTS)}, 28, "shift"),
    "svhn_cropped": (
        {"train": (40, *HOUSES), "test": (20, *HOUSES), "extra": (10, *HOUSES)},
        32,
        "shift",
    ),
    "food101": ({"train": (202, *PHOTOGRAPHS), "validation": (101, *PHOTOGRAPHS)}, 64, "mirror"),
}


@pytest.fixture(scope="module")
def given():
    """The examples of each data set, by split."""
    return {
        name: {split: [*examples(*how)] for split, how in splits.items()}
        for name, (splits, _, _) in STOCK.items()
    }


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def root(request, tmp_path_factory, given):
    """All of them prepared, in one of the formats."""
    root = tmp_path_factory.mktemp(request.param)
    for name, splits in given.items():
        builder = write(root, tfds.builder_cls(name), splits)
        if request.param == "tfrecord":
            as_tfrecord(root / name / str(builder.version))
    return root


def load(root, name, **chosen):
    return data.load(f"tfds:{name}", data_dir=root, notify=lambda _: None, **chosen)


def rows(images, labels):
    """Images with their labels, in an order that depends on nothing else; tfds shuffles."""
    table = np.column_stack([labels, images.reshape(len(images), -1)])
    return table[np.lexsort(table.T)]


@pytest.mark.parametrize("name", STOCK)
def test_what_was_prepared_is_read(root, given, name):
    splits, side, augment = STOCK[name]
    dataset = load(root, name)
    assert (dataset.name, dataset.augment) == (name, augment)
    assert len(dataset.classes) == splits["train"][-1]
    for split, original in zip((dataset.train, dataset.test), splits, strict=False):
        assert split.images.shape == (splits[original][0], side, side, 3)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        if name != "food101":  # which is resized
            expected = given[name][original]
            images = np.stack([np.broadcast_to(e["image"], (side, side, 3)) for e in expected])
            labels = [e["label"] for e in expected]
            np.testing.assert_array_equal(rows(*split), rows(images, labels))


def test_a_part_is_the_part_of_the_whole(root):
    whole, part = load(root, "svhn_cropped"), load(root, "svhn_cropped", train_size=15, seed=3)
    label_of = {image.tobytes(): label for image, label in zip(*whole.train, strict=True)}
    assert [label_of[image.tobytes()] for image in part.train.images] == part.train.labels.tolist()
    assert sorted(np.bincount(part.train.labels, minlength=10)) == [1] * 5 + [2] * 5


def test_photographs_are_resized_and_it_is_said(root):
    told = []
    data.load("tfds:food101", data_dir=root, train_size=9, notify=told.append)
    place = next((root / "food101").iterdir())
    assert told == [
        f"reading food101 from {place}",
        "images of different sizes: the shorter side becomes 64 and the middle is cut out; "
        "--image-size chooses another",
    ]
    assert load(root, "food101", train_size=9, image_size=16).test.images.shape == (101, 16, 16, 3)


def test_damage_is_named_or_does_no_harm(root, tmp_path):
    before = load(root, "svhn_cropped").test
    shutil.copytree(root / "svhn_cropped", tmp_path / "svhn_cropped")
    (shard,) = (tmp_path / "svhn_cropped").rglob("svhn_cropped-test.*")
    content = bytearray(shard.read_bytes())
    for at in RNG.integers(0, len(content), 8):
        shard.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with contextlib.suppress(data.DataError):  # or it is in a gap of an array_record file
            after = load(tmp_path, "svhn_cropped").test
            np.testing.assert_array_equal(after.images, before.images)
            np.testing.assert_array_equal(after.labels, before.labels)
    shard.write_bytes(content[:-9])
    with pytest.raises(data.DataError, match=re.escape(str(shard))):
        load(tmp_path, "svhn_cropped")


def test_without_test_images_a_fifth_is_held_out(tmp_path, given):
    write(tmp_path, tfds.builder_cls("svhn_cropped"), {"train": given["svhn_cropped"]["train"]})
    told = []
    dataset = data.load("tfds:svhn_cropped", data_dir=tmp_path, notify=told.append)
    assert np.bincount(dataset.test.labels).tolist() == [1] * 10
    assert len(dataset.train.labels) == 30
    assert "a fifth of each class" in told[1]


def test_a_test_without_labels_is_passed_over(tmp_path, given):
    splits = {**given["svhn_cropped"], "validation": given["svhn_cropped"]["extra"]}
    splits["test"] = [each | {"label": -1} for each in splits["test"]]
    write(tmp_path, tfds.builder_cls("svhn_cropped"), splits)
    assert len(load(tmp_path, "svhn_cropped").test.labels) == 10


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"label": tfds.features.Text()}, "does not classify images"),
        ({"image": tfds.features.Image(shape=(28, 28, 4))}, "with 4 channels"),
        ({"image": tfds.features.Image(shape=(28, 28, 1), dtype=np.uint16)}, "of uint16"),
    ],
)
def test_what_is_not_images_with_classes_is_refused(tmp_path, features, said):
    known = {
        "image": tfds.features.Image(shape=(28, 28, 1)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    builder = write(tmp_path, tfds.builder_cls("mnist"), {}, **known | features)
    builder.info.write_to_directory(tmp_path / "mnist" / "3.0.1")
    with pytest.raises(data.DataError, match=said):
        load(tmp_path, "mnist")


def test_the_newest_version_is_read(tmp_path, given):
    write(tmp_path, tfds.builder_cls("svhn_cropped"), given["svhn_cropped"])
    place = tmp_path / "svhn_cropped"
    assert len(load(tmp_path, "svhn_cropped").test.labels) == 20
    (place / "3.10.0").mkdir()  # newer than 3.1.0, and empty
    with pytest.raises(data.DataError, match=re.escape(str(place / "3.10.0"))):
        load(tmp_path, "svhn_cropped")


def test_configurations_are_listed(tmp_path):
    for name in ("letters", "balanced"):
        (tmp_path / "emnist" / name / "3.1.0").mkdir(parents=True)
    with pytest.raises(data.DataError, match="from tfds:emnist/balanced, tfds:emnist/letters"):
        load(tmp_path, "emnist")


def test_what_is_not_prepared_is_said_at_once(root):
    start = time.monotonic()
    with pytest.raises(NotAtHandError) as error:
        load(root, "imagenet_v2")
    assert time.monotonic() - start < 2
    message = str(error.value)
    assert message.startswith(f"tfds:imagenet_v2 is not prepared in {root} (cifar100, fashion")
    assert f"tfds build imagenet_v2 --data_dir {root}" in message
    assert "\n" not in message


def test_a_record_that_another_program_wrote(tmp_path):
    """TensorBoard's writer wrote these bytes."""
    written = bytes.fromhex("0800000000000000ff86240f61207265636f7264be6e4e08")
    assert framed(b"a record") == written
    path = tmp_path / "file.tfrecord"
    path.write_bytes(framed(b"") + written)
    with records.opened(path, "tfrecord") as shard:
        assert (shard.length, [*shard.records([1, 0])]) == (2, [b"a record", b""])
