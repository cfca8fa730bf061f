"""Rules for scatters, gathers, tiles and constants: right uses are exact, wrong ones refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ops import segment_max, segment_sum

import dcjax
from tests.networks import network_of
from tests.test_contract import assert_same, composed_and_separate, images

X, S, IMAGE = images((3, 6)), images((2, 6, 5)), images((2, 8, 8, 3))
SENDERS, RECEIVERS, GRAPH = jnp.array([0, 1, 2, 2]), jnp.array([1, 2, 0, 1]), jnp.array([0, 0, 1])
CAUSAL = np.tril(np.ones((6, 6), bool))


def after(hidden, features=2):
    """Return a network whose hidden layer's results go through `hidden` to the head."""
    return lambda x, width: nn.Dense(3)(hidden(nn.relu(nn.Dense(features * width)(x))))


def graph_convolutions(x, width):
    for _ in range(2):
        x = nn.relu(nn.Dense(width)(x))
        x = x + segment_sum(x[SENDERS], RECEIVERS, 3)
    return segment_sum(nn.Dense(3)(x), GRAPH, 2)


def graph_attention(x, width):
    x = nn.Dense(width * 2)(x).reshape(3, width, 2)
    scores = nn.leaky_relu(jnp.sum(x[SENDERS] * x[RECEIVERS], -1))
    weights = jnp.exp(scores - segment_max(scores, RECEIVERS, 3)[RECEIVERS])
    weights = weights / segment_sum(weights, RECEIVERS, 3)[RECEIVERS]
    x = segment_sum(x[SENDERS] * weights[..., None], RECEIVERS, 3)
    return nn.Dense(3)(nn.relu(x.reshape(3, -1)))


def blurred(make):
    """Return a network with a fixed depthwise filter, as in BlurPool."""

    def call(x, width):
        x = nn.relu(nn.Conv(width, (3, 3))(x))
        x = jax.lax.conv_general_dilated(
            x, make(width), (2, 2), "SAME", feature_group_count=width,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return nn.Dense(3)(x.mean((1, 2)))

    return call


def binomial(np_or_jnp):
    row = np_or_jnp.array([1.0, 2.0, 1.0], np_or_jnp.float32)
    return (np_or_jnp.outer(row, row) / 16)[:, :, None, None]


def attention(masked):
    """Return a network of attention heads, whose number is the width, with a mask."""

    def call(x, width):
        q, k, v = (nn.Dense(width * 2)(x).reshape(2, 6, width, 2) for _ in range(3))
        weights = nn.softmax(masked(jnp.einsum("bqhd,bkhd->bhqk", q, k), width))
        return nn.Dense(3)(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 6, -1))

    return call


def kernel_of(shape, change):
    """Return a network with a kernel of one's own, changed in place."""

    def call(x, width):
        x = nn.relu(nn.Dense(width)(x))
        return x @ change(_parameter(shape(width)))

    return call


def _parameter(shape):
    return nn.module._context.module_stack[-1].param("kernel", nn.initializers.normal(), shape)


def mapped(change):
    return after(lambda h: jax.vmap(change)(h, jnp.array([1, 3])))


ACCEPTED = {
    "segment_sum": (after(lambda h: segment_sum(h, GRAPH, 2)), X),
    "segment_max": (after(lambda h: segment_max(h, GRAPH, 2)), X),
    "segment_prod": (after(lambda h: jax.ops.segment_prod(h, GRAPH, 2)), X),
    "graph convolutions": (graph_convolutions, X),
    "graph attention": (graph_attention, X),
    "at add": (after(lambda h: h.at[GRAPH].add(2 * h)), X),
    "at subtract": (after(lambda h: h.at[GRAPH].subtract(jnp.sin(h))), X),
    "at set": (after(lambda h: h.at[0].set(0.5)), X),
    "at set, in the middle": (after(lambda h: h.at[:, 1:3].set(1.0)), S),
    "at multiply, max": (after(lambda h: h.at[0].multiply(2.0).at[1].max(1.0)), X),
    "logits at": (lambda x, w: nn.Dense(3)(nn.relu(nn.Dense(w)(x))).at[0].add(x[0, :3]), X),
    "a head's kernel pruned in place": (
        kernel_of(lambda w: (w, 3), lambda kernel: kernel.at[:, 0].set(0.0)), X,
    ),
    "dynamic slice, mapped": (
        mapped(lambda a, i: jax.lax.dynamic_slice(a, (i, 0), (2, a.shape[1]))), S,
    ),
    "dynamic update, mapped": (
        mapped(lambda a, i: jax.lax.dynamic_update_slice(a, a[:1] + 1, (i, 0))), S,
    ),
    "a row, mapped": (mapped(lambda a, i: a[i]), S),
    "a row": (after(lambda h: h[jnp.argmax(X[:, 0])]), X),
    "a number in which the width cancels": (
        lambda x, w: nn.Dense(3)(nn.relu(nn.Dense(w)(x)) * (jnp.sqrt(4.0 * w) / jnp.sqrt(w))), X,
    ),
    "BlurPool of NumPy": (blurred(lambda w: np.repeat(binomial(np), w, -1)), IMAGE),
    "BlurPool of JAX": (blurred(lambda w: jnp.tile(binomial(jnp), (1, 1, 1, w))), IMAGE),
    "mask broadcast": (
        attention(lambda a, w: jnp.where(jnp.broadcast_to(CAUSAL, a.shape), a, -1e9)), S,
    ),
    "mask broadcast in NumPy": (
        attention(lambda a, w: jnp.where(np.broadcast_to(CAUSAL, a.shape), a, -1e9)), S,
    ),
    "mask tiled": (
        attention(lambda a, w: jnp.where(jnp.tile(CAUSAL, (2, w, 1, 1)), a, -1e9)), S,
    ),
    "mask repeated": (
        attention(lambda a, w: a + jnp.repeat(jnp.log(CAUSAL + 1e-9)[None, None], w, 1)), S,
    ),
    "positions": (
        lambda x, w: nn.Dense(3)(
            nn.relu(nn.Dense(w)(x) + np.arange(6.0, dtype=np.float32)[:, None] * np.ones((1, w)))
        ), S,
    ),
    "an input tiled": (after(lambda h: h * jnp.tile(X[:, :1], (1, h.shape[1]))), X),
    "channels tiled": (after(lambda h: jnp.tile(h, (1, 2))), X),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_composes_exactly(name):
    call, x = ACCEPTED[name]
    assert_same(*composed_and_separate(network_of(call), 4, x))


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


REFUSED = {
    "at one channel": (after(lambda h: h.at[:, 0].set(0.0)), X, "scatter"),
    "at half of the channels": (after(lambda h: h.at[:, : h.shape[1] // 2].add(1.0)), X, "scatter"),
    "channels summed by segments": (
        after(lambda h: segment_sum(h.T, jnp.zeros(h.shape[1], int), 2).T), X, "scatter-add",
    ),
    "at positions that depend on features": (
        after(lambda h: h + X[:, :1].at[jnp.argmax(h, 0)].add(1.0)), X, "positions depend",
    ),
    "a function in place": (after(lambda h: h.at[0].apply(jnp.cos)), X, "in place"),
    "a maximum over logits": (
        lambda x, w: segment_max(nn.Dense(3)(nn.relu(nn.Dense(w)(x))), GRAPH, 2), X, "not linear",
    ),
    "a head's kernel set to one": (
        kernel_of(lambda w: (w, 3), lambda kernel: kernel.at[:, 0].set(1.0)), X, "no kernel that",
    ),
    "a block-diagonal kernel set to one": (
        kernel_of(
            lambda w: (2, w, w), lambda kernel: kernel.at[0].set(1.0).sum(0)
        ), X, "would not stay zero",
    ),
    "features scattered into a mean": (
        lambda x, w: nn.Dense(3)(jnp.zeros((3, w)).at[:, :1].add(nn.Dense(1)(nn.Dense(w)(x)))), X,
        "scatter-add",
    ),
    "a window of channels, mapped": (
        mapped(lambda a, i: jax.lax.dynamic_slice(a, (i, 0), (2, a.shape[1] // 2))), S, "gather",
    ),
    "an update of some channels, mapped": (
        mapped(lambda a, i: jax.lax.dynamic_update_slice(a, a[:1, :2], (i, 0))), S, "scatter|slice",
    ),
    "a filter for each channel": (blurred(lambda w: numbers(3, 3, 1, w)), IMAGE, "constant"),
    "a filter for each channel, tiled": (
        blurred(lambda w: jnp.tile(numbers(3, 3, 1, 2), (1, 1, 1, w // 2))), IMAGE, "tile",
    ),
    "a filter over all channels": (
        lambda x, w: nn.Dense(3)(jax.lax.conv_general_dilated(
            nn.Conv(w, (3, 3))(x), np.ones((3, 3, w, w), np.float32), (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC")).mean((1, 2))), IMAGE, "no kernel that",
    ),
    "a slope for each head": (
        attention(lambda a, w: a * 2.0 ** -np.arange(w, dtype=np.float32)[:, None, None]), S,
        "constant",
    ),
    "a number of the width": (
        after(lambda h: jnp.sin(h * jnp.sqrt(jnp.float32(h.shape[-1])))), X,
        "constant depends on the width: 2.* in a sub-network, 4",
    ),
    "an index of the width": (
        after(lambda h: h[jnp.minimum(h.shape[-1] // 4, 2)]), X, "depends on the width: 1 in .*, 2",
    ),
    "a number of the width, returned": (
        lambda x, w: (nn.Dense(3)(nn.relu(nn.Dense(w)(x))), jnp.sqrt(jnp.float32(w))), X,
        "constant depends on the width",
    ),
    "a number of the width, carried by a loop": (
        lambda x, w: nn.Dense(3)(jax.lax.fori_loop(
            0, 2, lambda _, s: (s[0] * s[1], jnp.sqrt(jnp.float32(w))),
            (nn.relu(nn.Dense(w)(x)), jnp.float32(1)))[0]), X, "constant depends on the width",
    ),
    "a number of the width in a branch": (
        lambda x, w: nn.Dense(3)(nn.relu(nn.Dense(w)(x)) * jax.lax.cond(
            x[0, 0] > 0, lambda: jnp.float32(w), lambda: jnp.float32(1))), X,
        "constant depends on the width",
    ),
    "a mean, tiled to the channels": (
        lambda x, w: nn.Dense(3)(jnp.tile(nn.Dense(1)(nn.relu(nn.Dense(w)(x))), (1, w))), X, "tile",
    ),
    "channels tiled by the width": (
        after(lambda h: jnp.tile(h, (1, h.shape[1]))), X, "tile",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, x, words = REFUSED[name]
    with pytest.raises(dcjax.NotSeparableError, match=words):
        dcjax.layout(network_of(call), 4, x)
