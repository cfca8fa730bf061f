"""Networks in unusual styles: whatever is accepted is exact, and the rest is refused by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcjax
from tests.exactness import relative_error
from tests.networks import network_of
from tests.test_contract import images

K, EXACT = 3, 2e-6
X, S, IMAGE = images((3, 6)), images((2, 5, 6)), images((2, 8, 8, 3))
PAIR = {"left": images((2, 6)), "right": 2 - images((2, 6))}
D, relu = nn.Dense, nn.relu


def parameter(name, *shape):
    module = nn.module._context.module_stack[-1]
    assert module is not None
    return module.param(name, nn.initializers.normal(), shape)


class Head(nn.Module):
    """One head of attention."""

    @nn.compact
    def __call__(self, x):
        q, k, v = D(4)(x), D(4)(x), D(4)(x)
        return nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k)) @ v


def mapped_heads(x, width):
    heads = nn.vmap(
        Head, variable_axes={"params": 0}, split_rngs={"params": True},
        in_axes=None, out_axes=-2, axis_size=width,
    )  # fmt: skip
    return D(3)(heads()(x).reshape(*x.shape[:-1], -1))


class Exit(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, _):
        x = x + relu(D(self.width)(x))
        return x, D(2)(x)


def early_exits(x, width):
    each = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 3}
    x, exits = nn.scan(Exit, **each)(width)(D(width)(x), None)
    return exits.sum(0), D(3)(x)


def siamese(pair, width):
    encoder = nn.Sequential([D(width), nn.BatchNorm(use_running_average=True), relu, D(width)])
    left, right = encoder(pair["left"]), encoder(pair["right"])
    return {"distance": D(1)(jnp.abs(left - right)), "product": D(2)(left * right)}


def linear_attention(x, width):
    q, k, v = (D(2 * width)(x).reshape(2, 5, width, 2) for _ in range(3))
    memory = jnp.einsum("nthd,nthe->nhde", nn.elu(k) + 1, v)
    return D(3)(jnp.einsum("nthd,nhde->nthe", nn.elu(q) + 1, memory).reshape(2, 5, -1))


def recurrence(x, width):
    def step(a, b):
        return a[0] * b[0], a[1] * b[0] + b[1]

    pair = nn.sigmoid(D(width)(x)), D(width)(x)
    return D(3)(jax.lax.associative_scan(step, pair, axis=1)[1])


def transposed(x, width):
    x = relu(nn.ConvTranspose(width, (4, 4), strides=(2, 2))(nn.Conv(width, (3, 3))(x)))
    kernel = parameter("kernel", 3, 3, width, width)
    x = jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", transpose_kernel=True)
    return nn.Conv(2, (1, 1))(relu(x))


def pixel_shuffle(x, width):
    x = nn.Conv(4 * width, (3, 3))(x).reshape(2, 8, 8, 2, 2, width)
    x = relu(x.transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 16, width))
    return nn.Conv(3, (1, 1))(jax.image.resize(x, (2, 8, 8, width), "bilinear"))


def chosen_step(x, width):
    x = D(width)(x)
    step = jax.nn.one_hot(jnp.argmax(x, 1), 5, axis=1)
    return D(3)((step * x).sum(1))


def of_time(x, width):
    x = D(width)(x)
    best = jax.lax.top_k(x.swapaxes(1, 2), 2)[0].reshape(2, -1)
    several = [jnp.median(x, 1), x.std(1), jax.nn.logsumexp(x, 1), jnp.sort(x, 1)[:, 1], best]
    return D(3)(jnp.concatenate(several, -1))


def spectral(x, width):
    spectrum = jnp.fft.rfft(relu(D(width)(x)), axis=1)
    spectrum = jnp.einsum("ntw,twv->ntv", spectrum, parameter("filter", 3, width, width))
    return D(3)(jnp.fft.irfft(spectrum, n=5, axis=1) + jnp.fft.fft(D(width)(x), axis=1).real)


def straight_through(x, width):
    x = nn.sigmoid(D(width)(x))
    return D(3)(x + jax.lax.stop_gradient(jnp.round(x) - x))


def experts(x, width):
    each = jnp.stack([relu(D(width)(x)) for _ in range(4)])
    return D(3)(jnp.einsum("ne,enw->nw", nn.softmax(x[:, :4]), each))


ACCEPTED = {
    "attention heads under vmap": (mapped_heads, S),
    "exits of scanned layers": (early_exits, X),
    "a Siamese network": (siamese, PAIR),
    "linear attention": (linear_attention, S),
    "a linear recurrence": (recurrence, S),
    "transposed convolutions": (transposed, IMAGE),
    "pixel shuffle, resizing": (pixel_shuffle, IMAGE),
    "a step chosen for each channel": (chosen_step, S),
    "statistics over time": (of_time, S),
    "filters of frequencies": (spectral, S),
    "rounding, straight through": (straight_through, X),
    "experts chosen by the input": (experts, X),
    "a hypernetwork": (
        lambda x, w: D(3)(jnp.einsum("ni,niw->nw", x, D(6 * w)(x).reshape(3, 6, w))), X,
    ),
    "cumulative sums under a mask": (
        lambda x, w: D(3)(jnp.where(x[..., :1] > 0, jnp.cumsum(D(w)(x), 1), jnp.tanh(D(w)(x)))), S,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_composes_exactly(name):
    call, x = ACCEPTED[name]
    network = network_of(call, width=4 * K)
    error, stacked = relative_error(network, K, x)
    assert error <= EXACT
    assert dcjax.verify(network, stacked, x).error <= EXACT


def learned_router(x, width):
    each = jnp.stack([relu(D(width)(x)) for _ in range(4)])
    return D(3)(jnp.einsum("ne,enw->nw", nn.softmax(D(4, name="router")(x)), each))


def quantised(x, width):
    codes = parameter("codes", 7, width)
    distances = jnp.square(D(width)(x)[:, None] - codes).sum(-1)
    return D(3)(codes[jnp.argmin(distances, -1)])


REFUSED = {
    "a similarity over channels": (
        lambda pair, w: (D(w)(pair["left"]) * D(w)(pair["right"])).sum(-1), PAIR,
        "adds up the channels of all sub-networks", "merge the sub-networks with a dense layer",
    ),
    "experts chosen by a layer": (
        learned_router, X, "params/router/kernel has shape .* in both networks, one place for K",
        "let it grow",
    ),
    "the nearest code of all channels": (quantised, X, "adds up the channels", "within groups"),
    "the largest channels": (
        lambda x, w: D(3)(jnp.where((h := D(w)(x)) >= jax.lax.top_k(h, 2)[0][:, -1:], h, 0)), X,
        "runs over the channels", "within a group",
    ),
    "probabilities": (
        lambda x, w: nn.softmax(D(3)(relu(D(w)(x)))), X, "the sub-networks are merged at",
        "last one",
    ),
    "a number for each head": (
        lambda x, w: D(3)(D(w)(x) * np.arange(1.0, w + 1, dtype=np.float32)), X,
        "varies along the channels", "make it a parameter",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, x, problem, remedy = REFUSED[name]
    with pytest.raises(dcjax.NotSeparableError, match=problem) as error:
        dcjax.layout(network_of(call, width=4 * K), K, x)
    assert remedy in str(error.value)
