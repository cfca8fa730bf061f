"""A folder of images: what is read, and what is refused by name."""

import numpy as np
import pytest
from PIL import Image

from experiments import data

RNG = np.random.default_rng(0)


def noise(height=6, width=5, channels=3):
    return RNG.integers(0, 256, (height, width, channels), np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


@pytest.fixture
def folder(tmp_path):
    """Two classes, three training images and one test image each."""
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "ape"):
            for i in range(count):
                save(tmp_path / split / name / f"{i}.png", noise())
    return tmp_path


def load(folder):
    return data.load(f"folder:{folder}", notify=lambda _: None)


def refused(folder, *said):
    """The message of the error that loading raises; it contains all of `said`."""
    with pytest.raises(data.DataError) as error:
        load(folder)
    for words in said:
        assert str(words) in str(error.value)
    return str(error.value)


def test_images_and_labels_in_order_of_class_and_name(folder):
    first = save(folder / "train" / "ape" / "0.png", noise())
    last = save(folder / "train" / "cat" / "3.PNG", noise())
    dataset = load(folder)
    assert dataset.name == f"folder:{folder}"
    assert dataset.classes == ("ape", "cat")
    assert dataset.train.images.shape == (7, 6, 5, 3)
    assert dataset.train.images.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1])
    assert dataset.test.labels.dtype == np.int32
    np.testing.assert_array_equal(dataset.train.images[0], first)
    np.testing.assert_array_equal(dataset.train.images[-1], last)


def test_jpeg_grey_and_transparent_images_become_rgb(folder):
    save(folder / "train" / "ape" / "3.jpg", noise())
    save(folder / "train" / "ape" / "4.jpeg", noise())
    grey = save(folder / "train" / "ape" / "5.png", noise()[..., 0])
    alpha = save(folder / "train" / "ape" / "6.png", noise(channels=4))
    images = load(folder).train.images
    assert images.shape[0] == 10
    np.testing.assert_array_equal(images[5], np.tile(grey[..., None], 3))
    np.testing.assert_array_equal(images[6], alpha[..., :3])


def test_other_and_hidden_files_are_passed_over(folder):
    (folder / "train" / "ape" / "notes.txt").write_text("no image")
    (folder / "train" / "ape" / "._0.png").write_bytes(b"of a file manager")
    (folder / "train" / ".cache").mkdir()
    (folder / "README").write_text("of the folder")
    assert len(load(folder).train.labels) == 6


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load(f"~/{folder.name}").classes == ("ape", "cat")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image(folder, suffix):
    path = folder / "test" / "cat" / f"broken.{suffix}"
    save(path, noise())
    path.write_bytes(path.read_bytes()[:-40])
    refused(folder, path, "1 of 9 images cannot be used")


def test_file_that_is_no_image(folder):
    path = folder / "train" / "cat" / "1.png"
    path.write_bytes(b"not an image")
    refused(folder, path)


def test_sixteen_bit_image(folder):
    path = folder / "train" / "cat" / "deep.png"
    save(path, noise()[..., 0].astype(np.uint16) * 256)
    refused(folder, path, "expected 8 bits a channel")


def test_images_of_different_sizes(folder):
    path = folder / "test" / "ape" / "wide.png"
    save(path, noise(height=6, width=9))
    refused(folder, f"{path}: its shape is (6, 9, 3), but the first image's (6, 5, 3)")


def test_many_problems_are_counted(folder):
    for i in range(8):
        save(folder / "train" / "ape" / f"small{i}.png", noise(height=2))
    message = refused(folder, "8 of 16 images cannot be used", "and 3 more")
    assert message.count("small") == 5


def test_missing_split(folder):
    (folder / "test").rename(folder / "validation")
    refused(folder, f"no folder {folder / 'test'}", "PATH/test/<class>")


def test_classes_differ(folder):
    save(folder / "train" / "dog" / "0.png", noise())
    (folder / "test" / "cat").rename(folder / "test" / "cats")
    refused(folder, "only in train ['cat', 'dog']", "only in test ['cats']")


def test_class_without_images(folder):
    (folder / "test" / "dog").mkdir()
    refused(folder, "no images in dog", folder / "test")


def test_images_without_class_folders(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split / "0.png", noise())
    refused(tmp_path, "0 class folders", "two classes or more")
