"""Operations that no result depends on, and operations that all sub-networks share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcjax
from tests.networks import network_of
from tests.test_contract import assert_same, composed_and_separate, images

X = images((3, 6))


def normed_for_nothing(x, width):
    x = nn.relu(nn.Dense(width)(x))
    nn.LayerNorm()(x)
    return nn.Dense(3)(x)


def scaled_initialiser(x, width):
    scale = nn.initializers.normal(stddev=jnp.sqrt(2 / width))
    return nn.Dense(3)(nn.relu(nn.Dense(width, kernel_init=scale)(x)))


def keyed_zeros(x, width):
    zeros = nn.initializers.zeros(jax.random.key(width), (width,))
    return nn.Dense(3)(nn.relu(nn.Dense(width)(x) + zeros))


def nested(x, width):
    """Work for nothing inside of a call, beside work that is needed."""

    @jax.jit
    def both(h):
        return h * 2, jax.nn.softmax(h), h.sort()

    return nn.Dense(3)(both(nn.relu(nn.Dense(width)(x)))[0])


def printed(x, width):
    x = nn.relu(nn.Dense(width)(x))
    jax.debug.callback(lambda h: None, x)
    return nn.Dense(3)(x)


def hidden(transform):
    """Return a network that computes with the input by a function without a rule."""
    return lambda x, width: nn.Dense(3)(nn.relu(nn.Dense(width)(transform(x))))


def embedded_bins(x, width):
    bins = jnp.digitize(x, jnp.linspace(-1, 1, 5))
    return nn.Dense(3)(nn.relu(nn.Embed(9, width)(bins)))


def square(x):
    return x.T @ x + jnp.eye(6)


def called_back(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


ACCEPTED = {
    "a layer norm that nothing uses": normed_for_nothing,
    "a root in an initialiser": scaled_initialiser,
    "a key that zeros ignore": keyed_zeros,
    "unused results of a call": nested,
    "debugging": printed,
    "cholesky of the input": hidden(lambda x: jnp.linalg.cholesky(square(x))),
    "digitize": embedded_bins,
    "an update of zeros": hidden(lambda x: jnp.zeros((3, 6)).at[:2].set(x[:2])),
    "a linear system": hidden(lambda x: jnp.linalg.solve(square(x), x.T).T),
    "eigenvectors": hidden(lambda x: jnp.linalg.eigh(square(x))[1]),
    "interpolation": hidden(lambda x: jnp.interp(x, jnp.linspace(-1, 1, 5), jnp.arange(5.0))),
    "nonzero": hidden(lambda x: x[jnp.nonzero(x[:, 0] > 0, size=2)[0]]),
    "a callback": hidden(called_back),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_composes_exactly(name):
    assert_same(*composed_and_separate(network_of(ACCEPTED[name]), 4, X))


@pytest.mark.parametrize("name", ["a layer norm that nothing uses", "unused results of a call"])
def test_verify_passes_over_what_nothing_uses(name):
    network = network_of(ACCEPTED[name])
    stacked = dcjax.init(network, 4, jax.random.key(0), X)
    assert dcjax.verify(network, stacked, X, tolerance=1e-5).layers


def kept_heads(x, width, factor=1.0):
    x = nn.relu(nn.Dense(width)(x))
    nn.Dense(3, name="aux")(x * factor)
    return nn.Dense(3, name="head")(x)


def test_a_head_whose_result_nothing_uses_is_divided():
    layout = dcjax.layout(network_of(kept_heads), 4, X)
    assert {path[1] for path, leaf in layout.leaves if leaf.head} == {"head", "aux"}


def tied_for_nothing(x, width):
    embed = nn.Embed(5, width)
    x = embed(jnp.argmax(x, -1))
    embed.attend(x)
    return nn.Dense(3)(x)


def standardised_for_nothing(x, width):
    x = nn.relu(nn.Dense(width)(x))
    kernel = nn.module._context.module_stack[-1].param("k", nn.initializers.normal(), (width, 3))
    x @ ((kernel - kernel.mean()) / kernel.std())
    return nn.Dense(3)(x)


def half_used(x, width):
    @jax.jit
    def both(h):
        return jax.nn.softmax(h), h.sort()

    return nn.Dense(3)(both(nn.Dense(width)(x))[0])


def used_in_a_loop(x, width):
    """A state that is used in the next round, though not after the last."""

    def body(_, state):
        h, means = state
        return h + means, jnp.broadcast_to(h.mean(-1, keepdims=True), h.shape)

    x = nn.Dense(width)(x)
    return nn.Dense(3)(jax.lax.fori_loop(0, 3, body, (x, x))[0])


def shared_by_size_alone(x, width):
    """The first columns of a factor of the width: other numbers in the global network."""
    return nn.Dense(3)(nn.relu(nn.Dense(width)(jnp.linalg.cholesky(square(x) * width))))


def starting_at_the_width(x, width):
    return nn.Dense(3)(
        nn.relu(nn.Dense(width)(jax.lax.slice(x, (0, width // 4), (3, width // 4 + 1))))
    )


def called_back_with_the_width(x, width):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    x = jax.pure_callback(lambda x: x * width, shape, x)
    return nn.Dense(3)(nn.relu(nn.Dense(width)(x)))


REFUSED = {
    "a head that is an embedding too": (tied_for_nothing, "kernel of its own"),
    "a head that is standardised": (standardised_for_nothing, "params/k .*no result of the traced"),
    "results of which one is used": (half_used, "reduce_max"),
    "a state that the next round uses": (used_in_a_loop, "reduce_sum"),
    "a factor of the width": (shared_by_size_alone, "depends on the width"),
    "a start that depends on the width": (starting_at_the_width, "slice"),
    "a callback that depends on the width": (called_back_with_the_width, "pure_callback"),
    "cholesky of features": (
        lambda x, width: nn.Dense(3)(jnp.linalg.cholesky((h := nn.Dense(width)(x)) @ h.T)),
        "merge|kernel that could",
    ),
    "cholesky of logits": (
        lambda x, width: jnp.linalg.cholesky(square(nn.Dense(6)(nn.relu(nn.Dense(width)(x))))),
        "dot_general",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, words = REFUSED[name]
    with pytest.raises(dcjax.NotSeparableError, match=words):
        dcjax.layout(network_of(call), 4, X)
