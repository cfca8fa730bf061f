"""Attention under masks, with one head and with several in a sub-network."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcjax
from tests.exactness import relative_error

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 5)))
FIELDS = ("width", "heads")
pytestmark = pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated")
EXACT = 2e-6


def causal(tokens, heads):
    return nn.make_causal_mask(tokens, dtype=bool)  # (N, 1, T, T)


def padding(tokens, heads):
    return nn.make_attention_mask(tokens > 2, tokens > 2, dtype=bool)


def each_head(tokens, heads):
    return jnp.broadcast_to(causal(tokens, heads), (len(tokens), heads, 5, 5))


def square(tokens, heads):
    return np.tril(np.ones((5, 5), bool))


def one_for_all(tokens, heads):
    return jnp.tril(jnp.ones((1, 1, 5, 5), bool))


class Attention(nn.Module):
    """One layer of attention, by a layer of Flax's or by hand."""

    layer: str
    mask: Callable[..., Any]
    width: int
    heads: int

    def heads_of(self, x):
        return nn.DenseGeneral((self.heads, self.width // self.heads))(x)

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, self.width)(tokens)
        mask = self.mask(tokens, self.heads)
        if self.layer == "MultiHeadDotProductAttention":
            y = nn.MultiHeadDotProductAttention(self.heads)(x, x, mask=mask)
        elif self.layer == "SelfAttention":
            y = nn.SelfAttention(self.heads)(x, mask=mask)
        else:
            q, k, v = (self.heads_of(x) for _ in range(3))
            bias = jnp.where(mask, 0.0, -1e9)
            if self.layer == "a bias":
                y = nn.dot_product_attention(q, k, v, bias=bias)
            elif self.layer == "jax.nn":
                y = jax.nn.dot_product_attention(q, k, v, mask=mask)
            elif self.layer == "jax.nn, a bias":
                y = jax.nn.dot_product_attention(q, k, v, bias=bias)
            elif self.layer == "einsum":
                scores = jnp.where(mask, jnp.einsum("bqhd,bkhd->bhqk", q, k), -1e9)
                y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
            else:
                q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
                y = (nn.softmax(q @ k.swapaxes(2, 3) + bias) @ v).swapaxes(1, 2)
            y = nn.DenseGeneral(self.width, axis=(-2, -1))(y)
        return nn.Dense(3)(nn.gelu(x + y))


MASKS = (causal, padding, each_head, square, one_for_all)
LAYERS = ("MultiHeadDotProductAttention", "SelfAttention", "a bias", "einsum")
ONE_HEAD = [(layer, mask) for layer in LAYERS for mask in MASKS]
ONE_HEAD += [("jax.nn", causal), ("jax.nn, a bias", causal)]
SEVERAL = [(layer, causal) for layer in (*LAYERS, "jax.nn", "@")]
SEVERAL += [(LAYERS[0], mask) for mask in MASKS[1:]]


@pytest.mark.parametrize(("layer", "mask"), ONE_HEAD)
def test_one_head_in_a_sub_network(layer, mask):
    network = Attention(layer, mask, width=8, heads=4)
    assert relative_error(network, 4, TOKENS, FIELDS)[0] <= EXACT


@pytest.mark.parametrize(("layer", "mask"), SEVERAL)
def test_two_heads_in_a_sub_network(layer, mask):
    network = Attention(layer, mask, width=8, heads=4)
    assert relative_error(network, 2, TOKENS, FIELDS)[0] <= EXACT


@pytest.mark.parametrize("subnets", [2, 3])
def test_verify_compares_the_layers_of_one_head(subnets):
    network = Attention("SelfAttention", causal, width=4 * subnets, heads=subnets)
    _, stacked = relative_error(network, subnets, TOKENS, FIELDS)
    report = dcjax.verify(network, stacked, TOKENS, fields=FIELDS, tolerance=EXACT)
    assert any("SelfAttention_0" in row.layer for row in report.layers)


@pytest.mark.parametrize("layer", ["@", "jax.nn", "jax.nn, a bias"])
def test_where_one_head_is_another_operation_the_remedy_is_named_and_works(layer):
    """`@` leaves out an axis of one; jax.nn takes a mask of one head for that of all heads."""
    network = Attention(layer, each_head, width=8, heads=4)
    with pytest.raises(dcjax.NotSeparableError, match="give each sub-network two or more"):
        dcjax.layout(network, 4, TOKENS, fields=FIELDS)
    assert relative_error(network, 2, TOKENS, FIELDS)[0] <= EXACT


class Gated(nn.Module):
    """One number for all channels, broadcast to a single channel and to many, in a loop too."""

    looped: bool
    width: int

    @nn.compact
    def __call__(self, x):
        def gate(_, h):
            return jnp.where(jnp.broadcast_to(x[:, :1] > 0, h.shape), jnp.tanh(h), h)

        h = nn.Dense(self.width)(x)
        h = jax.lax.fori_loop(0, 2, gate, h) if self.looped else jax.jit(gate)(0, h)
        return nn.Dense(3)(h)


@pytest.mark.parametrize("looped", [False, True])
def test_one_channel_in_a_sub_network(looped):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)
    assert relative_error(Gated(looped, width=3), 3, x)[0] <= EXACT


def test_a_true_difference_beside_a_left_out_broadcast_is_told():
    class Differs(nn.Module):
        width: int = 4

        @nn.compact
        def __call__(self, x):
            h = jnp.where(
                jnp.broadcast_to(x[:, :1] > 0, (2, self.width)), nn.Dense(self.width)(x), 0
            )
            return nn.Dense(3)(jnp.sin(h) if self.width > 1 else jnp.cos(h))

    with pytest.raises(dcjax.NotSeparableError, match="`cos` in a sub-network, `sin` in"):
        dcjax.layout(Differs(), 4, jnp.ones((2, 6)))
