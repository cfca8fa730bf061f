"""A folder of images: what is read, and what is refused by name."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

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
    opaque = noise(channels=4)
    opaque[..., 3] = 255
    save(folder / "train" / "ape" / "6.png", opaque)
    images = load(folder).train.images
    assert images.shape[0] == 10
    np.testing.assert_array_equal(images[5], np.tile(grey[..., None], 3))
    np.testing.assert_array_equal(images[6], opaque[..., :3])


def test_what_is_passed_over_is_counted_in_one_line(folder):
    for name in ("a.txt", "b.TXT", "c.heic", "._0.png"):
        (folder / "train" / "ape" / name).write_text("no image")
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "x.png").touch()
    (folder / "validation").mkdir()
    told = []
    assert len(data.load(f"folder:{folder}", notify=told.append).train.labels) == 6
    assert told == [
        f"passed over in {folder}: 2 hidden, 2 .txt, 1 .heic, "
        "1 .png outside of the class folders, 1 validation/",
        f"reading the images in {folder}",
    ]


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "webp", "bmp", "gif", "tif", "ppm", "qoi"])
def test_any_ending_that_pillow_knows_is_taken(folder, suffix):
    save(folder / "train" / "ape" / f"3.{suffix}", noise())
    assert len(load(folder).train.labels) == 7


def test_folders_below_a_class_are_taken(folder):
    nested = save(folder / "train" / "ape" / "zoo" / "one" / "0.png", noise())
    images = load(folder).train.images
    assert len(images) == 7
    np.testing.assert_array_equal(images[3], nested)


def test_accents_composed_and_decomposed_are_one_class(folder):
    save(folder / "train" / "caf\u00e9" / "0.png", noise())
    save(folder / "train" / "cafe\u0301" / "1.png", noise())
    save(folder / "test" / "cafe\u0301" / "0.png", noise())
    dataset = load(folder)
    assert dataset.classes == ("ape", "caf\u00e9", "cat")
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 2, 2, 2])


def test_an_image_on_its_side_is_turned_upright(folder):
    """Its size too is that of the upright image."""
    upright = noise()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turn clockwise by 90 degrees
    path = folder / "train" / "ape" / "3.png"
    Image.fromarray(np.rot90(upright)).save(path, exif=exif)
    np.testing.assert_array_equal(load(folder).train.images[3], upright)


def test_everything_that_cannot_be_read_is_one_message(folder):
    train, test = folder / "train", folder / "test"
    (train / "ape" / "lost.png").symlink_to("nowhere")
    (train / "ape" / "around").symlink_to("..")
    (train / "ape" / "itself").symlink_to("itself")
    os.mkfifo(train / "cat" / "pipe.png")
    (train / "dog").mkdir()
    (test / "dog").symlink_to(folder / "no dog")
    message = refused(
        folder,
        "6 of 14 files cannot be used; replace or remove them:",
        f"{train / 'ape' / 'around'}: a link to a folder that it is in",
        f"{train / 'ape' / 'lost.png'}: a link that leads nowhere",
        f"{train / 'ape' / 'itself'}: Too many levels of symbolic links",
        f"{train / 'cat' / 'pipe.png'}: a pipe, socket or device",
        f"{train / 'dog'}: no images in it",
        "and 1 more",
    )
    assert message.count("\n") == 6
    for name in ("around", "itself", "lost.png"):
        (train / "ape" / name).unlink()
    refused(folder, f"{test / 'dog'}: a link that leads nowhere", "3 of")


def test_files_and_folders_without_permission(folder, monkeypatch):
    """Tests may run as root, who may read everything."""
    bad = {folder / "train" / "ape" / "0.png", folder / "train" / "cat"}
    opened, listed = open, Path.iterdir

    def unreadable(function):
        def call(path, *args, **kwargs):
            if Path(path) in bad:
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *args, **kwargs)

        return call

    monkeypatch.setattr("builtins.open", unreadable(opened))
    monkeypatch.setattr(Path, "iterdir", unreadable(listed))
    refused(folder, "2 of 6 files", *(f"{path}: Permission denied" for path in bad))


def test_names_that_are_not_utf8_are_read_and_printable(folder):
    name = os.fsdecode(b"caf\xe9\n")
    for split in ("train", "test"):
        save(folder / split / name / "0.png", noise())
    assert load(folder).classes == ("ape", name, "cat")
    (folder / "train" / name / "0.png").write_bytes(b"no image")
    assert "caf\\udce9\\n/0.png': Pillow does not know its format" in refused(folder)


def test_a_huge_image_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    save(folder / "train" / "ape" / "big.png", noise(9, 9))
    save(folder / "train" / "ape" / "warned.png", noise(9, 6))
    refused(folder, "2 of 10", "big.png: Image size (81 pixels)", "warned.png: Image size (54")


def test_more_images_than_fit_into_memory(folder, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 20)
    refused(folder, "8 images of 6×5 take 0.0 GiB", "make the images smaller")


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load(f"~/{folder.name}").classes == ("ape", "cat")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image(folder, suffix):
    path = folder / "test" / "cat" / f"broken.{suffix}"
    save(path, noise())
    path.write_bytes(path.read_bytes()[:-40])
    refused(folder, path, "1 of 9 files cannot be used")


def test_file_that_is_no_image(folder):
    path = folder / "train" / "cat" / "1.png"
    path.write_bytes(b"not an image")
    refused(folder, path)


def test_sixteen_bit_image(folder):
    path = folder / "train" / "cat" / "deep.png"
    save(path, noise()[..., 0].astype(np.uint16) * 256)
    refused(folder, f"{path}: its mode I;16 cannot become RGB without loss")


def test_images_of_different_sizes(folder):
    path = folder / "test" / "ape" / "wide.png"
    save(path, noise(height=6, width=9))
    refused(folder, f"{path}: its shape is (6, 9, 3), but the first image's (6, 5, 3)")


def test_many_problems_are_counted(folder):
    for i in range(8):
        save(folder / "train" / "ape" / f"small{i}.png", noise(height=2))
    message = refused(folder, "8 of 16 files cannot be used", "and 3 more")
    assert message.count("small") == 5


def test_missing_split(folder):
    (folder / "test").rename(folder / "validation")
    refused(folder, f"no folder {folder / 'test'}", "PATH/test/<class>")


def test_classes_differ(folder):
    save(folder / "train" / "dog" / "0.png", noise())
    (folder / "test" / "cat").rename(folder / "test" / "cats")
    refused(folder, "only in train 'cat', 'dog'", "only in test 'cats'")


def test_class_without_images(folder):
    (folder / "test" / "dog").mkdir()
    (folder / "train" / "dog").mkdir()
    refused(folder, f"{folder / 'test' / 'dog'}: no images in it")


def test_images_without_class_folders(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split / "0.png", noise())
    refused(tmp_path, "0 class folders", "two classes or more")
