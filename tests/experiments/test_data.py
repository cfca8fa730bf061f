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
from experiments.data.sources import cifar10
from experiments.data.types import NotAtHandError, measured, moments


def numbered(labels):
    """A split whose images carry their own number."""
    labels = np.asarray(labels, np.int32)
    numbers = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return data.Split(np.tile(numbers, (1, 1, 1, 3)), labels)


splits = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(numbered)


def test_import_starts_neither_jax_nor_the_libraries_of_the_data():
    heavy = ("jax", "tensorflow_datasets", "tensorflow", "sklearn", "requests")
    code = f"import sys, experiments.data; print([m for m in {heavy} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert run.stdout.decode().strip() == "[]"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar", "expected auto, cifar10, digits or folder:PATH"),
        ("", "expected auto, cifar10, digits or folder:PATH"),
        ("folder:", "train/<class>"),
        ("folder:/no/such/place", "no folder /no/such/place/train"),
    ],
)
def test_unknown_names(name, said):
    with pytest.raises(data.DataError, match=said):
        data.load(name)


def test_a_data_set_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "noise.py").write_text(
        "import numpy as np\n"
        "from experiments.data.types import Split, measured\n"
        "def load(place=None, notify=print):\n"
        "    split = Split(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1], np.int32))\n"
        "    return measured('noise', split, split, ('a', 'b'))\n"
    )
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    assert data.load("noise").name == "noise"
    with pytest.raises(data.DataError, match="cifar10, digits, noise or folder:PATH"):
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


def test_statistics_are_those_of_the_training_images():
    rng = np.random.default_rng(0)
    train, test = (
        data.Split(rng.integers(0, 256, (n, 5, 4, 3), np.uint8), np.zeros(n, np.int32))
        for n in (2500, 3)
    )
    dataset = measured("noise", train, test, ("a", "b"))
    scaled = train.images.astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, scaled.std((0, 1, 2)), rtol=1e-6)
    assert dataset.mean.dtype == dataset.std.dtype == np.float32


def test_a_channel_that_never_varies_can_be_divided_by_its_std():
    images = np.full((1500, 32, 32, 3), 37, np.uint8)
    images[0, 0, 0, 1] = 38
    _, std = moments(images)
    np.testing.assert_array_equal(std == 1, [True, False, True])


@settings(deadline=None, max_examples=50)
@given(splits, st.integers(0, 3), st.data())
def test_subset_is_balanced_nested_and_of_the_split(split, seed, draw):
    size = draw.draw(st.integers(1, len(split.labels)))
    smaller = draw.draw(st.integers(1, size))
    part, inner = (data.subset(split, n, seed, 5) for n in (size, smaller))
    chosen = part.images[:, 0, 0, 0]
    assert len(set(chosen)) == size
    np.testing.assert_array_equal(part.labels, split.labels[chosen])
    assert set(inner.images[:, 0, 0, 0]) <= set(chosen)
    have, there_are = (np.bincount(s.labels, minlength=5) for s in (part, split))
    not_exhausted = have[have < there_are]
    assert (not_exhausted >= have.max() - 1).all()


def test_subset_depends_on_the_seed_alone():
    split = numbered(np.arange(200) % 5)
    a, b, c = (data.subset(split, 50, seed, 5).images.tobytes() for seed in (0, 0, 1))
    assert a == b
    assert a != c


@pytest.mark.parametrize("size", [None, 2, 3])
def test_subset_of_all_is_the_split(size):
    split = numbered([0, 1])
    for part, whole in zip(data.subset(split, size, 0, 2), split, strict=True):
        np.testing.assert_array_equal(part, whole)


def nothing_at_hand(*_):
    raise NotAtHandError("CIFAR-10 is not prepared in /some/place, and its host is silent")


def test_auto_falls_back_to_digits_and_says_so(monkeypatch):
    monkeypatch.setattr(cifar10, "load", nothing_at_hand)
    told = []
    assert data.load(notify=told.append).name == "digits"
    (notice,) = told
    assert "THIS IS NOT CIFAR-10" in notice
    assert "its host is silent" in notice


def testcifar10_never_falls_back(monkeypatch):
    monkeypatch.setattr(cifar10, "load", nothing_at_hand)
    with pytest.raises(data.DataError, match="its host is silent"):
        data.load("cifar10", notify=pytest.fail)
