import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcjax.training import crop, crop_and_flip, no_augment, standardise
from dcjax.training._devices import DEVICES, sharding


def images(count, height, width, channels=3):
    rng = np.random.default_rng(count * height * width)
    return rng.integers(1, 256, (count, height, width, channels), dtype=np.uint8)


def views(image, padding):
    """Every crop of the padded image, and its mirror image."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            view = padded[top : top + height, left : left + width]
            yield view
            yield view[:, ::-1]


@pytest.mark.parametrize(
    ("shape", "padding"), [((9, 7, 5, 3), 2), ((4, 3, 8, 1), 4), ((2, 4, 4, 2), 0)]
)
@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)  # few shapes, many keys: each shape is compiled
def test_a_crop_is_a_crop(shape, padding, seed):
    x = images(*shape)
    y = jax.jit(crop_and_flip, static_argnums=2)(jax.random.key(seed), x, padding)
    chex.assert_trees_all_equal_shapes_and_dtypes(y, jnp.asarray(x))
    for before, after in zip(x, np.asarray(y), strict=True):
        assert any(np.array_equal(after, view) for view in views(before, padding))


def test_all_shifts_and_both_sides_are_drawn_alike():
    x = np.zeros((4000, 5, 6, 1), np.uint8)
    x[:, 1, 1] = 1
    y = np.asarray(crop_and_flip(jax.random.key(0), jnp.asarray(x), padding=1))
    _, rows, columns, _ = np.nonzero(y)
    places, counts = np.unique(np.stack([rows, columns]), axis=1, return_counts=True)
    assert places.tolist() == [
        [0] * 6 + [1] * 6 + [2] * 6,
        [0, 1, 2, 3, 4, 5] * 3,
    ]
    assert counts.min() > 4000 / 18 * 0.7


def test_crop_alone_mirrors_nothing():
    x = np.zeros((900, 5, 6, 1), np.uint8)
    x[:, 1, 1], x[:, 1, 2] = 1, 2
    y = np.asarray(crop(jax.random.key(0), jnp.asarray(x), padding=1))[..., 0]
    _, rows, columns = np.nonzero(y == 1)
    places, counts = np.unique(np.stack([rows, columns]), axis=1, return_counts=True)
    assert places.tolist() == [[0] * 3 + [1] * 3 + [2] * 3, [0, 1, 2] * 3]
    assert counts.min() > 900 / 9 * 0.7
    np.testing.assert_array_equal(np.nonzero(y == 2)[2], columns + 1)


def test_another_key_gives_another_crop():
    x = jnp.asarray(images(8, 8, 8))
    first, second = (crop_and_flip(jax.random.key(seed), x) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_the_crops_do_not_depend_on_the_devices():
    x = jnp.asarray(images(16, 8, 8))
    spread = jax.device_put(x, sharding(jax.devices()[:4], DEVICES))
    crops = [jax.jit(crop_and_flip)(jax.random.key(0), batch) for batch in (x, spread)]
    chex.assert_trees_all_equal(*map(np.asarray, crops))


def test_no_augment_keeps_the_images():
    x = jnp.asarray(images(2, 4, 4))
    chex.assert_trees_all_equal(no_augment(jax.random.key(0), x), x)


def test_standardise_has_the_mean_and_the_deviation_of_each_channel():
    mean, std = np.array([0.2, 0.5, 0.7]), np.array([0.1, 0.2, 0.3])
    x = images(3, 4, 5)
    y = standardise(mean.tolist(), std.tolist())(jnp.asarray(x))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, (x / 255 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int32, np.int16, bool])
def test_standardise_takes_bytes_alone(dtype):
    with pytest.raises(ValueError, match=rf"of uint8, from 0 to 255, got {np.dtype(dtype)}\("):
        standardise()(images(3, 4, 5).astype(dtype))


@pytest.mark.parametrize("std", [0.0, [0.2, -1.0, 0.2], float("nan")])
def test_a_deviation_is_positive(std):
    with pytest.raises(ValueError, match="standard deviations > 0"):
        standardise(std=std)
