"""The contract, row by row: the composed network computes what K separate networks compute."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dcjax
from tests.networks import (
    CLASSES,
    GLU,
    ROWS,
    DenseNet,
    LeNet,
    ResNeXt,
    Row,
    ShuffleNet,
    SqueezeExcite,
    Transformer,
    UNet,
)


def images(shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def random_stacked(network, subnets, x, samples=None, dtype=np.float32):
    """Variables that no initialiser makes: no zero biases, no unit scales; variances positive.

    From NumPy, because compiling JAX's random numbers would take longer than the test.
    """
    layout = dcjax.layout(network, subnets, x, samples=samples)
    seen = jax.eval_shape((samples or dcjax.samples.replicate(subnets)).split, x)
    one = jax.ShapeDtypeStruct(seen.shape[1:], seen.dtype)
    subnet = dcjax.decompose(network, subnets)
    shapes = jax.eval_shape(subnet.init, jax.random.key(0), one)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        values = rng.normal(size=(subnets, *leaf.shape)) / np.sqrt(fan_in)
        positive = jax.tree_util.keystr(path).endswith("['var']")
        return jnp.asarray(1 + values**2 if positive else values, dtype)

    return dcjax.Stacked(jax.tree_util.tree_map_with_path(draw, shapes), layout)


def composed_and_separate(network, subnets, x, samples=None, dtype=jnp.float32):
    """The composed network's output, and the mean of K separate networks' outputs."""
    stacked = random_stacked(network, subnets, x, samples, dtype)
    samples = samples or dcjax.samples.replicate(subnets)
    apply = jax.jit(dcjax.decompose(network, subnets).apply)
    separate = [apply(stacked[k], x_k) for k, x_k in enumerate(samples.split(x))]
    together = jax.jit(network.apply)(dcjax.compose(stacked), samples.join(x))
    return np.asarray(together, np.float64), np.mean(np.asarray(separate, np.float64), axis=0)


def assert_same(composed, separate, tolerance=1e-5):
    chex.assert_equal_shape([composed, separate])
    assert np.abs(separate).max() > 0
    assert np.abs(composed - separate).max() <= tolerance * np.abs(separate).max()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_composes_exactly(row: Row):
    x = row.input()
    assert_same(*composed_and_separate(row.build(row.width), 2, x))


@pytest.mark.parametrize("subnets", [1, 3, 4])
@pytest.mark.parametrize("build", [LeNet, DenseNet])
def test_any_number_of_subnets(build, subnets):
    x = images((2, 8, 8, 3))
    assert_same(*composed_and_separate(build(4 * subnets), subnets, x))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_composes_in_bfloat16(row: Row):
    x = row.input()
    x = x if row.tokens else x.astype(jnp.bfloat16)
    composed, separate = composed_and_separate(row.build(row.width), 2, x, dtype=jnp.bfloat16)
    assert_same(composed, separate, tolerance=0.05)  # a few roundings of 2^-8 each


@pytest.mark.parametrize(
    "samples",
    [
        dcjax.samples.replicate(3),
        dcjax.samples.channels(3),
        dcjax.samples.tiles(4, overlap=2),
        dcjax.samples.phases(4),
        dcjax.samples.bands(4),
    ],
    ids=lambda samples: samples.name,
)
def test_composes_with_every_way_to_decompose_samples(samples):
    x = images((3, 16, 16, 3))
    network = LeNet(2 * samples.subnets)
    assert_same(*composed_and_separate(network, samples.subnets, x, samples))


class Drawn(nn.Module):
    """A network of drawn depth and sizes: convolutions, skips, a concatenation, a flatten."""

    width: int
    depth: int
    concatenate: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3))(x)
        for _ in range(self.depth):
            y = nn.BatchNorm(use_running_average=True)(x)
            y = nn.Conv(self.width, (3, 3))(nn.relu(y))
            x = jnp.concatenate([x, y], -1) if self.concatenate else x + y
            x = nn.Conv(self.width, (1, 1))(x)
        return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


@settings(deadline=None, max_examples=6)
@given(
    subnets=st.integers(2, 5),
    narrow=st.integers(1, 4),
    depth=st.integers(0, 2),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    concatenate=st.booleans(),
)
def test_drawn_networks_compose_exactly(subnets, narrow, depth, height, width, concatenate):
    x = images((2, height, width, 2))
    network = Drawn(subnets * narrow, depth, concatenate)
    assert_same(*composed_and_separate(network, subnets, x))


@settings(deadline=None, max_examples=10)
@given(
    build=st.sampled_from([DenseNet, UNet, ResNeXt, SqueezeExcite, GLU, ShuffleNet, Transformer]),
    subnets=st.integers(2, 4),
    narrow=st.sampled_from([2, 4]),
    height=st.sampled_from([4, 8, 12]),
    width=st.sampled_from([4, 8]),
    channels=st.integers(1, 5),
)
def test_user_written_networks_of_drawn_sizes(build, subnets, narrow, height, width, channels):
    if build is ShuffleNet:  # every shuffle halves the channels that stay together
        narrow *= 4
    x = images((2, height, width, channels))
    assert_same(*composed_and_separate(build(subnets * narrow), subnets, x))


def test_feature_maps_agree_in_training_mode_when_all_see_one_batch():
    network = dcjax.models.CNN(width=8, num_classes=CLASSES)
    x = images((8, 16, 16, 3))
    stacked = random_stacked(network, 2, x)
    training = {"train": True, "mutable": ["batch_stats"]}
    dcjax.verify(network, stacked, x, tolerance=1e-5, **training)
    subnet = dcjax.decompose(network, 2)
    _, updates = network.apply(dcjax.compose(stacked), x, **training)
    each = [subnet.apply(stacked[k], x, **training)[1] for k in range(2)]
    stats = dcjax.stack([u["batch_stats"] for u in each], like=stacked["batch_stats"])
    chex.assert_trees_all_close(updates["batch_stats"], dcjax.compose(stats), rtol=1e-5, atol=1e-6)


def test_layout_of_a_billion_parameters_costs_tracing_only():
    network = LeNet(12000)  # kernels of 12,000 × 24,000 × 9, and 4 × 24,000 × 36,000
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) > 1e9
    before = sum(a.nbytes for a in jax.live_arrays())
    layout = dcjax.layout(network, 4, x)
    assert sum(a.nbytes for a in jax.live_arrays()) - before < 1e6
    assert str(layout["params"]["Dense_0"]["kernel"].leaves[0][1].axes[0]) == "4×K×6000"
