"""A folder of images: what is read, and what is refused by name."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from experiments import data
from experiments.data import reading

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
        f"{folder}: 2 classes (ape, cat), 6 training and 2 test images",
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
        "5 of 11 files cannot be used; replace or remove them:",
        f"{train / 'ape' / 'around'}: a link to a folder that it is in",
        f"{train / 'ape' / 'lost.png'}: a link that leads nowhere",
        f"{train / 'ape' / 'itself'}: Too many levels of symbolic links",
        f"{train / 'cat' / 'pipe.png'}: a pipe, socket or device",
        f"{train / 'dog'}: no images in it",
        "1 of 3 files cannot be used; replace or remove them:",
        f"{test / 'dog'}: a link that leads nowhere",
    )
    assert message.count("\n") == 7
    for name in ("around", "itself", "lost.png"):
        (train / "ape" / name).unlink()
    refused(folder, f"{test / 'dog'}: a link that leads nowhere", "2 of 8")


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
    refused(folder, "2 of 4 files", *(f"{path}: Permission denied" for path in bad))


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
    refused(folder, "2 of 8", "big.png: Image size (81 pixels)", "warned.png: Image size (54")


def test_more_images_than_fit_into_memory(folder, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 20)
    refused(folder, "6 images of 6×5 take 0.0 GiB", "--image-size")


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load(f"~/{folder.name}").classes == ("ape", "cat")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image(folder, suffix):
    path = folder / "test" / "cat" / f"broken.{suffix}"
    save(path, noise())
    path.write_bytes(path.read_bytes()[:-40])
    refused(folder, path, "1 of 3 files cannot be used")


def test_file_that_is_no_image(folder):
    path = folder / "train" / "cat" / "1.png"
    path.write_bytes(b"not an image")
    refused(folder, path)


def test_sixteen_bit_image(folder):
    path = folder / "train" / "cat" / "deep.png"
    save(path, noise()[..., 0].astype(np.uint16) * 256)
    refused(folder, f"{path}: its mode I;16 cannot become RGB without loss")


def test_images_of_different_sizes_are_resized_and_it_is_said(folder):
    save(folder / "test" / "ape" / "wide.png", noise(height=70, width=90))
    told = []
    dataset = data.load(f"folder:{folder}", notify=told.append)
    assert dataset.train.images.shape == (6, 64, 64, 3)
    assert dataset.test.images.shape == (3, 64, 64, 3)
    assert told[-1].startswith("images of different sizes: the shorter side becomes 64")
    assert data.load(f"folder:{folder}", image_size=20).test.images.shape == (3, 20, 20, 3)


def test_large_images_are_resized(folder):
    for path in folder.rglob("*.png"):
        save(path, noise(height=150, width=140))
    assert load(folder).train.images.shape == (6, 64, 64, 3)
    whole = data.load(f"folder:{folder}", image_size=140).train.images
    assert whole.shape == (6, 140, 140, 3)
    first = np.asarray(Image.open(folder / "train" / "ape" / "0.png"))
    np.testing.assert_array_equal(whole[0], first[5:145])  # the middle


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_middle_is_cut_out_of_an_upright_photograph(folder, suffix):
    """Grey left of the middle, red in it, blue right of it; on its side in the file."""
    upright = np.full((300, 900, 3), 128, np.uint8)
    upright[:, 300:600], upright[:, 600:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = folder / "train" / "ape" / f"3.{suffix}"
    Image.fromarray(np.rot90(upright)).save(path, exif=exif, quality=95)
    image = data.load(f"folder:{folder}", image_size=30).train.images[3].astype(int)
    assert abs(image[2:-2, 2:-2] - [255, 0, 0]).max() < 12


def test_only_the_images_that_are_used_are_read(folder):
    paths = [*(folder / "train").rglob("*.png")]
    dataset = data.load(f"folder:{folder}", train_size=2, notify=lambda _: None)
    assert dataset.train.labels.tolist() == [0, 1]
    chosen = {image.tobytes() for image in dataset.train.images}
    for path in paths:
        if np.asarray(Image.open(path)).tobytes() not in chosen:
            path.write_bytes(b"not an image")
    again = data.load(f"folder:{folder}", train_size=2, notify=lambda _: None)
    np.testing.assert_array_equal(again.train.images, dataset.train.images)


def test_without_train_and_test_a_fifth_of_each_class_is_the_test(tmp_path):
    for name, count in (("ape", 11), ("cat", 4)):
        for i in range(count):
            save(tmp_path / name / f"{i:02d}.png", noise())
    told = []
    dataset = data.load(f"folder:{tmp_path}", notify=told.append)
    assert told == [
        f"{tmp_path}: 2 classes (ape, cat), 12 training and 3 test images, a fifth of each class, "
        "drawn with seed 0"
    ]
    assert np.bincount(dataset.train.labels).tolist() == [9, 3]
    assert np.bincount(dataset.test.labels).tolist() == [2, 1]
    images = [*dataset.train.images, *dataset.test.images]
    assert len({image.tobytes() for image in images}) == 15
    again = load(tmp_path)
    np.testing.assert_array_equal(again.test.images, dataset.test.images)


def test_a_class_of_one_image_is_refused_without_train_and_test(tmp_path):
    for name, count in (("ape", 1), ("cat", 4), ("dog", 1)):
        for i in range(count):
            save(tmp_path / name / f"{i:02d}.png", noise())
    with pytest.raises(data.DataError, match="class 'ape', class 'dog' has 1 image; every class"):
        load(tmp_path)


def test_the_test_may_be_named_validation(folder):
    (folder / "test").rename(folder / "val")
    assert len(load(folder).test.labels) == 2


def test_how_far_it_is_is_said_when_it_takes_long(folder, monkeypatch):
    monkeypatch.setattr(reading, "PATIENCE", 0)
    monkeypatch.setattr(reading, "CHUNK", 4)
    told = []
    data.load(f"folder:{folder}", notify=told.append)
    assert told[-1] == f"reading {folder}: 4 of 6 images"


def test_many_problems_are_counted(folder):
    for i in range(8):
        (folder / "train" / "ape" / f"small{i}.png").write_bytes(b"not an image")
    message = refused(folder, "8 of 14 files cannot be used", "and 3 more")
    assert message.count("small") == 5


def test_missing_split(folder):
    (folder / "test").rename(folder / "elsewhere")
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
