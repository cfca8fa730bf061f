"""Data sets by name, the digits, channel statistics and subsets."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import data
from experiments.data import sources
from experiments.data.kept import kept
from experiments.data.reading import in_memory
from experiments.data.sources import cifar10
from experiments.data.subset import held_out, subset
from experiments.data.types import NotAtHandError, moments

some_labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


def test_import_starts_neither_jax_nor_the_libraries_of_the_data():
    heavy = ("jax", "tensorflow_datasets", "tensorflow", "sklearn", "requests")
    code = f"import sys, experiments.data; print([m for m in {heavy} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert run.stdout.decode().strip() == "[]"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar", "expected auto, cifar10, cifar100, digits, tfds:NAME or folder:PATH"),
        ("", "expected auto, cifar10, cifar100, digits, tfds:NAME or folder:PATH"),
        ("folder:", "train/<class>"),
        ("folder:", "folder: names no folder; expected PATH/train"),
        ("folder:/no/such/place", "no folder /no/such/place"),
        ("tfds:", "unknown dataset 'tfds:'"),
    ],
)
def test_unknown_names(name, said):
    with pytest.raises(data.DataError, match=said):
        data.load(name)


def test_a_data_set_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "noise.py").write_text(
        "import numpy as np\n"
        "from experiments.data.reading import in_memory\n"
        "from experiments.data.types import Source\n"
        "def load(place=None, notify=print):\n"
        "    pool = in_memory(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1], np.int32))\n"
        "    return Source('noise', pool, pool, ('a', 'b'))\n"
    )
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    assert data.load("noise").name == "noise"
    with pytest.raises(data.DataError, match="cifar10, cifar100, digits, noise, tfds:NAME"):
        data.load("missing")


def test_digits_are_balanced_and_always_the_same():
    first, second = data.load("digits"), data.load("digits")
    for split, each in ((first.train, 140), (first.test, 34)):
        np.testing.assert_array_equal(np.bincount(split.labels), [each] * 10)
        assert split.images.shape == (10 * each, 32, 32, 3)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert (split.images == split.images[..., :1]).all()
        assert (split.images.min(), split.images.max()) == (0, 255)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.test.labels, second.test.labels)
    assert (first.name, first.classes) == ("digits", tuple("0123456789"))


def test_digits_train_on_no_test_image():
    digits = data.load("digits")
    train = {image.tobytes() for image in digits.train.images}
    assert not [image for image in digits.test.images if image.tobytes() in train]


def test_statistics_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2500, 5, 4, 3), np.uint8)
    mean, std = moments(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_statistics_of_digits_do_not_depend_on_the_part_that_is_used():
    few, every = data.load("digits", train_size=64), data.load("digits")
    np.testing.assert_array_equal(few.mean, every.mean)
    np.testing.assert_array_equal(few.std, every.std)


def test_a_channel_that_never_varies_can_be_divided_by_its_std():
    images = np.full((1500, 32, 32, 3), 37, np.uint8)
    images[0, 0, 0, 1] = 38
    _, std = moments(images)
    np.testing.assert_array_equal(std == 1, [True, False, True])


@settings(deadline=None, max_examples=50)
@given(some_labels, st.integers(0, 3), st.data())
def test_subset_is_balanced_nested_and_in_order(labels, seed, draw):
    size = draw.draw(st.integers(1, len(labels)))
    smaller = draw.draw(st.integers(1, size))
    part, inner = (subset(labels, n, seed, 5) for n in (size, smaller))
    assert len(set(part)) == size
    assert (np.diff(part) > 0).all()
    assert set(inner) <= set(part)
    have, there_are = (np.bincount(each, minlength=5) for each in (labels[part], labels))
    not_exhausted = have[have < there_are]
    assert (not_exhausted >= have.max() - 1).all()


def test_subset_depends_on_the_seed_alone():
    labels = np.arange(200) % 5
    a, b, c = (subset(labels, 50, seed, 5).tolist() for seed in (0, 0, 1))
    assert a == b
    assert a != c


def test_the_choice_of_the_images_stays_as_it_is():
    """Published results were of these images."""
    assert subset(np.arange(50) % 5, 7, 0, 5).tolist() == [2, 4, 18, 20, 26, 34, 36]


@pytest.mark.parametrize("size", [None, 2, 3])
def test_subset_of_all_is_the_split(size):
    assert subset(np.array([0, 1]), size, 0, 2).tolist() == [0, 1]


@settings(deadline=None, max_examples=50)
@given(some_labels)
def test_a_fifth_of_each_class_is_held_out(labels):
    numbers = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    pool = in_memory(np.tile(numbers, (1, 2, 2, 3)), labels)
    train, test = held_out(pool, 5)
    images = [part.read(np.arange(len(part.labels)), None)[:, 0, 0, 0] for part in (train, test)]
    assert sorted([*images[0], *images[1]]) == [*range(len(labels))]
    for part, chosen in zip((train, test), images, strict=True):
        np.testing.assert_array_equal(part.labels, labels[chosen])
    for there_are, tests in zip(
        *(np.bincount(x, minlength=5) for x in (labels, test.labels)), strict=True
    ):
        assert tests == (max(1, there_are // 5) if there_are > 1 else 0)


def test_images_can_be_resized():
    small, large = (data.load("digits", train_size=10, image_size=n) for n in (16, 40))
    assert small.train.images.shape == (10, 16, 16, 3)
    assert large.test.images.shape == (340, 40, 40, 3)


def test_how_images_are_varied_can_be_chosen():
    assert data.load("digits").augment == "none"
    assert data.load("digits", augment="shift").augment == "shift"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dcjax" / "data"


def test_what_took_long_is_kept_and_read_once(cache):
    told, reads = [], []

    def read():
        reads.append(1)
        return np.arange(6)

    for _ in range(2):
        np.testing.assert_array_equal(kept("a", read, told.append, pays=0), np.arange(6))
    assert len(reads) == 1
    (path,) = cache.iterdir()
    assert told == [f"kept for the next run: {path}, 0 MiB"]
    kept("b", read, told.append, pays=0)
    assert len(reads) == len([*cache.iterdir()]) == 2
    kept("c", read, told.append)
    assert len([*cache.iterdir()]) == 2  # it was quick to read


def test_what_is_kept_and_damaged_is_read_again(cache):
    for _ in range(2):
        kept("a", lambda: np.arange(600), print, pays=0)
        (path,) = cache.iterdir()
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    np.testing.assert_array_equal(kept("a", lambda: np.arange(600), print), np.arange(600))


def test_a_cache_that_cannot_be_written_is_said(cache):
    cache.parent.write_text("")
    told = []
    np.testing.assert_array_equal(kept("a", lambda: np.arange(6), told.append, 0), np.arange(6))
    assert "cannot be kept" in told[0]


def nothing_at_hand(*_):
    raise NotAtHandError("CIFAR-10 is not prepared in /some/place, and its host is silent")


def test_auto_falls_back_to_digits_and_says_so(monkeypatch):
    monkeypatch.setattr(cifar10, "load", nothing_at_hand)
    told = []
    assert data.load(notify=told.append).name == "digits"
    (notice,) = told
    assert "THIS IS NOT CIFAR-10" in notice
    assert "its host is silent" in notice


def test_cifar10_never_falls_back(monkeypatch):
    monkeypatch.setattr(cifar10, "load", nothing_at_hand)
    with pytest.raises(data.DataError, match="its host is silent"):
        data.load("cifar10", notify=pytest.fail)
