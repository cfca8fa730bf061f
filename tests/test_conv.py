"""The models' convolution: lax's in everything but the way to its kernel gradient."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dcjax.models import _conv, conv_general_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), dtype)


def gradients(by, x, kernel, strides, padding, **options):
    """By the image and by the kernel, of a cost that is not linear."""
    options = {"dimension_numbers": LAYOUT} | options

    def cost(x, kernel):
        return jnp.sum(jnp.sin(by(x, kernel, strides, padding, **options).astype(jnp.float32)))

    return jax.grad(cost, (0, 1))(x, kernel)


def assert_same(x, kernel, strides, padding, tolerance=1e-5, **options):
    ours = gradients(conv_general_dilated, x, kernel, strides, padding, **options)
    theirs = gradients(lax.conv_general_dilated, x, kernel, strides, padding, **options)
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == expected.dtype
        scale = np.abs(np.asarray(expected, np.float32)).max(initial=0) + 1e-6
        np.testing.assert_allclose(
            np.asarray(got, np.float32), np.asarray(expected, np.float32), atol=tolerance * scale
        )


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(0, 7),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", "VALID", [(2, 1), (0, 3)], [(0, 1), (1, 0)]]),
    budget=st.sampled_from([1, 2000, 2**20]),
)
def test_gradients_are_lax_s(batch, size, channels, window, strides, padding, budget):
    pads = (
        lax.padtype_to_pads(size, window, strides, padding) if isinstance(padding, str) else padding
    )
    assume(all(n + sum(p) >= w for n, p, w in zip(size, pads, window, strict=True)))
    # Beyond that lax's own gradient by the image was seen to hold memory that nothing has written.
    assume(all(max(p) < w for p, w in zip(pads, window, strict=True)))
    was, _conv._CHUNK_BYTES = _conv._CHUNK_BYTES, budget
    try:
        x, kernel = draw(batch, *size, channels[0]), draw(*window, *channels)
        assert_same(x, kernel, strides, padding)
    finally:
        _conv._CHUNK_BYTES = was


def test_zeros_around_that_are_wider_than_the_kernel():
    x, kernel, pads = draw(6, 5, 2, 2), draw(3, 3, 2, 4), [(4, 0), (5, 4)]
    inside = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    ours = gradients(conv_general_dilated, x, kernel, (1, 1), pads)[1]
    theirs = gradients(lax.conv_general_dilated, inside, kernel, (1, 1), "VALID")[1]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 6, 6, 4), (3, 3, 2, 4), {"feature_group_count": 2}),
        ((2, 6, 6, 4), (3, 3, 4, 4), {"rhs_dilation": (2, 2)}),
        ((2, 6, 6, 4), (3, 3, 4, 4), {"lhs_dilation": (2, 1)}),
        ((2, 4, 6, 6), (5, 4, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
        ((2, 6, 6, 4), (3, 3, 4, 4), {"lhs_dilation": (1, 1), "feature_group_count": 1}),
    ],
)
def test_other_convolutions_are_lax_s_own(shape, kernel, options):
    assert_same(draw(*shape), draw(*kernel), (1, 1), [(1, 1), (1, 1)], **options)


def test_one_and_three_dimensions_are_lax_s_own():
    for axes in (1, 3):
        conv = functools.partial(nn.Conv, 3, (2,) * axes)
        x = draw(2, *(4,) * axes, 2)
        variables = conv().init(jax.random.key(0), x)
        ours = conv(conv_general_dilated=conv_general_dilated).apply(variables, x)
        np.testing.assert_array_equal(ours, conv().apply(variables, x))


def test_bfloat16_sums_in_single_precision():
    x, kernel = draw(64, 8, 8, 4, dtype=jnp.bfloat16), draw(3, 3, 4, 4, dtype=jnp.bfloat16)
    assert_same(x, kernel, (1, 1), "SAME", tolerance=0.02)


def test_it_jits_vmaps_and_remats():
    x, kernel = draw(3, 2, 6, 6, 2), draw(3, 3, 2, 3)

    def by_kernel(by, x):
        return gradients(by, x, kernel, (1, 1), "SAME")[1]

    ours = jax.jit(jax.vmap(functools.partial(by_kernel, conv_general_dilated)))(x)
    theirs = jax.vmap(functools.partial(by_kernel, lax.conv_general_dilated))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)

    @jax.checkpoint
    def block(x, kernel):
        return conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)

    remat = jax.grad(lambda kernel: jnp.sum(jnp.sin(block(x[0], kernel))))(kernel)
    np.testing.assert_allclose(remat, theirs[0], rtol=1e-4, atol=1e-4)


def test_a_batch_that_is_cut_over_devices_stays_where_it_is():
    """Each device sums over its own images: one all-reduce, no gathering."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("devices",))
    x, kernel = draw(32, 8, 8, 4), draw(3, 3, 4, 4)

    def by_kernel(x, kernel):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return gradients(conv_general_dilated, x, kernel, (1, 1), "SAME")[1]

    cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec("devices")))
    whole = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    was, _conv._CHUNK_BYTES = _conv._CHUNK_BYTES, 1
    try:
        compiled = jax.jit(by_kernel).lower(cut, whole).compile()
    finally:
        _conv._CHUNK_BYTES = was
    program = compiled.as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert "all-to-all" not in program
    expected = gradients(lax.conv_general_dilated, x, kernel, (1, 1), "SAME")[1]
    np.testing.assert_allclose(compiled(cut, whole), expected, rtol=1e-4, atol=1e-4)
