import functools

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from dcjax import samples

few = settings(deadline=None, max_examples=8)


def normal(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@st.composite
def ways(draw):
    """A way, images that fit it, and the shape (h, w, c) that a sub-network sees of them."""
    rows, columns, h, w, c = (draw(st.integers(1, 3)) for _ in range(5))
    name = draw(st.sampled_from(["channels", "shared channels", "tiles", "phases", "bands"]))
    if name == "channels":
        way, shape, seen = samples.channels(rows), (h, w, rows * c), (h, w, c)
    elif name == "shared channels":
        way, shape, seen = samples.channels(rows * c), (h, w, c), (h, w, 1)
    elif name == "tiles":
        overlap = draw(st.integers(0, min(h, w) // 2))
        way, shape = samples.tiles((rows, columns), overlap=overlap), (rows * h, columns * w, c)
        seen = (h + 2 * overlap * (rows > 1), w + 2 * overlap * (columns > 1), c)
    elif name == "phases":
        way, shape = samples.phases((rows, columns)), (rows * h, columns * w, c)
        seen = (h, w, c)
    else:
        side = 2 ** (rows - 1)
        way = samples.bands(side**2) if rows < 3 else samples.bands(16)
        shape, seen = (side * h, side * w, c), (h, w, c)
    return way, normal((draw(st.integers(0, 3)), *shape)), seen


@few
@given(ways())
def test_join_is_the_concatenation_of_what_split_gives(case):
    way, images, seen = case
    views, joined = jax.jit(lambda x: (way.split(x), way.join(x)))(images)
    chex.assert_shape(views, (way.subnets, len(images), *seen))
    chex.assert_trees_all_equal(joined, np.concatenate(list(np.asarray(views)), -1))


@pytest.mark.parametrize("name", samples.NAMES)
def test_the_ways_are_pure_and_linear(name):
    way, images = samples.make(name, 4), normal((2, 4, 4, 4))
    for function in (way.split, way.join):
        value = function(images)
        chex.assert_trees_all_equal(jax.jit(function)(images), value)
        chex.assert_trees_all_equal(jax.vmap(function)(images[None])[0], value)
        _, tangent = jax.jvp(function, (images,), (images,))  # linear: its own derivative
        chex.assert_trees_all_close(tangent, value, atol=1e-6)


@few
@given(st.integers(1, 5), st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_replicate_shows_everyone_everything(subnets, shape):
    x, way = normal(shape), samples.replicate(subnets)
    chex.assert_trees_all_equal(way.split(x), np.stack([x] * subnets))
    chex.assert_trees_all_equal(way.join(x), x)


@pytest.mark.parametrize("name", ["replicate", "channels", "tiles", "phases"])
@pytest.mark.parametrize("dtype", ["uint8", "bfloat16"])
def test_dtypes_are_kept(name, dtype):
    way, x = samples.make(name, 3), jnp.arange(2 * 6 * 6 * 3).reshape(2, 6, 6, 3).astype(dtype)
    chex.assert_type([way.split(x), way.join(x)], dtype)


def test_channels_in_order():
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)
    assert samples.channels(3).split(x).reshape(3, 2).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert samples.channels(12).split(x).ravel().tolist() == [0, 1, 2, 3, 4, 5] * 2


@few
@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 6), st.data())
def test_tiles_cover_the_image_and_contain_their_part(rows, columns, part, data):
    overlap = data.draw(st.integers(0, part // 2))
    height, width = rows * part, columns * part
    pixels = np.arange(height * width).reshape(1, height, width, 1)
    tiles = np.asarray(jax.jit(samples.tiles((rows, columns), overlap=overlap).split)(pixels))
    parts = np.asarray(jax.jit(samples.tiles((rows, columns)).split)(pixels))
    for tile, part_of_it in zip(tiles, parts, strict=True):
        assert np.isin(part_of_it, tile).all()
        assert (
            np.ptp(tile // width) == tile.shape[1] - 1
        )  # a tile is a rectangle: nothing is wrapped
        assert np.ptp(tile % width) == tile.shape[2] - 1
    assert set(parts.ravel()) == set(range(height * width))


def test_tiles_at_the_border_are_shifted_inward():
    x = jnp.arange(12).reshape(1, 1, 12, 1)
    tiles = samples.tiles((1, 3), overlap=1).split(x).reshape(3, 6)
    assert tiles[:, 0].tolist() == [0, 3, 6]


@few
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_phases_are_a_partition_that_interleaves_back(rows, columns, height, width):
    x = normal((2, rows * height, columns * width, 2))
    views = np.asarray(jax.jit(samples.phases((rows, columns)).split)(x))
    views = views.reshape(rows, columns, 2, height, width, 2)
    chex.assert_trees_all_equal(views.transpose(2, 3, 0, 4, 1, 5).reshape(x.shape), x)


def unhaar(average, along_width, along_height, along_both):
    """One level of the inverse orthonormal Haar transform, block by block."""
    a = average + along_width + along_height + along_both
    b = average - along_width + along_height - along_both
    c = average + along_width - along_height - along_both
    d = average - along_width - along_height + along_both
    n, h, w, count = average.shape
    blocks = np.stack([a, b, c, d], axis=3).reshape(n, h, w, 2, 2, count) / 2
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, count)


@few
@given(st.integers(0, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9))
def test_bands_are_invertible(levels, height, width, seed):
    subnets, rng = 4**levels, np.random.default_rng(seed)
    x = normal((2, height * 2**levels, width * 2**levels, 3))
    deviations = rng.uniform(0.1, 4, subnets)
    views = jax.jit(samples.bands(subnets, deviations=tuple(deviations)).split)(x)
    found = list(np.asarray(views) * deviations[:, None, None, None, None])
    for _ in range(levels):
        found = [unhaar(*found[i : i + 4]) for i in range(0, len(found), 4)]
    np.testing.assert_allclose(found[0], x, atol=1e-5)


def test_bands_have_the_stated_order():
    flat, across, down = jnp.ones((2, 2)), jnp.array([[1.0, -1.0]] * 2), jnp.array([[1.0], [-1.0]])
    patterns = jnp.stack([flat, across, jnp.broadcast_to(down, (2, 2)), across * down])
    views = samples.bands(4, deviations=[1] * 4).split(patterns[..., None]).reshape(4, 4)
    chex.assert_trees_all_equal(views, 2 * jnp.eye(4))


@pytest.mark.parametrize("subnets", [1, 4, 16])
def test_bands_of_natural_images_have_about_unit_variance(subnets):
    # Neighbouring pixels that correlate by 0.92, as in photographs, and a little independent noise.
    side, count = 16, 400
    distance = np.abs(np.subtract.outer(np.arange(side), np.arange(side)))
    factor = np.linalg.cholesky(0.92**distance)
    noise = np.random.default_rng(0).normal(size=(2, count, side, side))
    x = (factor @ noise[0] @ factor.T + 0.1 * noise[1])[..., None]
    deviations = samples.bands(subnets).split(jnp.asarray(x, jnp.float32)).std((1, 2, 3, 4))
    assert deviations.min() > 1 / 3
    assert deviations.max() < 3


def test_batches_do_not_matter_to_bands():
    x, split = normal((5, 4, 4, 3)), samples.bands(4).split
    chex.assert_trees_all_equal(split(x)[:, 2:3], split(x[2:3]))


@pytest.mark.parametrize("name", samples.NAMES)
def test_make_finds_a_way_by_its_name(name):
    way, x = samples.make(name, 1), normal((2, 4, 4, 3))
    assert (way.name, way.subnets) == (name, 1)
    chex.assert_trees_all_equal(way.join(x), x)  # one sub-network is the global network
    chex.assert_trees_all_equal(way.split(x), x[None])


@pytest.mark.parametrize(
    ("subnets", "grid"),
    [(1, (1, 1)), (2, (1, 2)), (4, (2, 2)), (6, (2, 3)), (8, (2, 4)), (7, (1, 7))],
)
@pytest.mark.parametrize("way", [samples.tiles, samples.phases])
def test_k_alone_chooses_the_most_square_grid(way, subnets, grid):
    x = np.arange(2 * 84).reshape(1, 2, 84, 1)
    chex.assert_trees_all_equal(way(subnets).split(x), way(grid).split(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (functools.partial(samples.make, "tile", 4), "replicate, channels, tiles, phases, bands"),
        (
            functools.partial(samples.replicate, 0),
            "replicate: K must be at least 1 and below 2³¹, got 0",
        ),
        (functools.partial(samples.channels, -1), "channels: K must be at least 1 .* got -1"),
        (functools.partial(samples.tiles, 0), "tiles: K must be at least 1 .* got 0"),
        (
            functools.partial(samples.tiles, (2, 0)),
            r"tiles: in grid \(2, 0\) a side must be .* got 0",
        ),
        (functools.partial(samples.tiles, (2, 2, 2)), r"tiles: a grid must be \(rows, columns\)"),
        (
            functools.partial(samples.tiles, 4, overlap=-1),
            "tiles: overlap must be at least 0 .* got -1",
        ),
        (functools.partial(samples.phases, (4,)), r"phases: a grid must be \(rows, columns\)"),
        (functools.partial(samples.bands, 3), "bands: K = 3 is not a power of 4; .* 1, 4, 16"),
        (functools.partial(samples.bands, 8), "bands: K = 8 is not a power of 4"),
        (functools.partial(samples.bands, 64), "known for K = 64, only for K = 1, 4, 16: measure"),
        (functools.partial(samples.bands, 4, deviations=[1, 1, 1]), "must be K = 4 positive"),
        (functools.partial(samples.bands, 1, deviations=[0]), "must be K = 1 positive"),
        (functools.partial(samples.bands, 1, deviations=[np.nan]), "must be K = 1 positive"),
        (functools.partial(samples.tiles, 2**61 - 1), "below 2³¹"),  # a prime: minutes of search
        (functools.partial(samples.make, ["tiles"], 4), "replicate, channels"),
    ],
)
def test_a_way_that_does_not_exist_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [samples.replicate, samples.tiles, samples.bands])
@pytest.mark.parametrize("wrong", [4.0, None, "4", "ab", np.array([4])])
def test_k_is_a_whole_number(make, wrong):
    with pytest.raises(TypeError, match="must be an integer"):
        make(wrong)


@pytest.mark.parametrize(
    ("way", "shape", "message"),
    [
        (
            samples.channels(4),
            (1, 8, 8, 3),
            "K = 4 .* of 3 channels; expected K = 1 or a multiple of 3",
        ),
        (samples.channels(3), (1, 8, 8, 1), None),
        (samples.channels(4), (1, 8, 8, 6), "K = 1, 2, 3 or a multiple of 6"),
        (
            samples.tiles(3),
            (1, 8, 8, 3),
            r"tiles: a grid of 1×3 \(K = 3\) .* of 8×8; .* 1, 2, 4, 8, 16",
        ),
        (samples.tiles((3, 1)), (1, 8, 9, 3), "tiles: a grid of 3×1"),
        (
            samples.tiles(4, overlap=3),
            (1, 8, 8, 3),
            "overlap 3 .* 4 to 10 of 8 pixels; .* at most 2",
        ),
        (samples.phases(9), (1, 8, 8, 3), r"phases: a grid of 3×3 \(K = 9\)"),
        (samples.bands(16), (1, 6, 8, 3), r"bands: a grid of 4×4 .* of 6×8; .* K fit: 1, 4"),
        (
            samples.bands(4),
            (8, 8, 3),
            r"bands expects .* \(N, H, W, C\), got an array of shape \(8, 8, 3\)",
        ),
    ],
)
def test_images_that_do_not_fit_are_an_error(way, shape, message):
    x = jnp.zeros(shape)
    if message is None:
        chex.assert_shape(way.split(x), (3, *shape))
        return
    for function in (way.split, way.join):
        with pytest.raises(ValueError, match=message):
            function(x)


@pytest.mark.parametrize("way", [samples.replicate(4), samples.tiles(4)])
@pytest.mark.parametrize("x", [None, [[1.0]], "x", 1.0, np.float32(1), np.array(["x"])])
def test_images_are_an_array(way, x):
    for function in (way.split, way.join):
        with pytest.raises(TypeError, match="expects a batch of images"):
            function(x)


@pytest.mark.parametrize("wrong", ["abcd", 1j, [[1.0], [1.0, 2.0]]])
def test_deviations_are_numbers(wrong):
    with pytest.raises(TypeError, match="deviations must be numbers"):
        samples.bands(4, deviations=wrong)


def test_bands_of_integers_are_an_error():
    with pytest.raises(TypeError, match="floating-point images, got uint8"):
        samples.bands(4).split(jnp.zeros((1, 4, 4, 3), jnp.uint8))
