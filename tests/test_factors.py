"""Numbers that depend on the width: a factor of a leaf makes up for them, or they are refused."""

import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcjax
from dcjax._layout.json import layout_from_json, layout_to_json
from dcjax._layout.layout import path_of
from tests.networks import network_of
from tests.test_contract import assert_same, composed_and_separate, images, random_stacked

X, TOKENS, IMAGE = images((3, 6)), jnp.arange(6).reshape(2, 3), images((2, 8, 8, 3))
D, relu = nn.Dense, nn.relu


def fan_in(x):
    return np.sqrt(x.shape[-1])


def ntk(x, width):
    for _ in range(2):
        x = relu(D(width)(x) / fan_in(x))
    return D(3)(x) / fan_in(x)


def parameter(name, *shape):
    module = nn.module._context.module_stack[-1]
    assert module is not None
    return module.param(name, nn.initializers.normal(), shape)


def equalised(x, width):
    x = relu(x @ (parameter("a", x.shape[-1], width) * np.sqrt(2 / x.shape[-1])))
    x = relu(x @ (parameter("b", width, width) * np.sqrt(2 / width)) + parameter("c", width))
    return x @ (parameter("d", width, 3) * np.sqrt(1 / width))


def transformer(x, width):
    x = nn.Embed(9, width)(x) * jnp.sqrt(width)
    x = x + parameter("position", 3, width)
    x = x + nn.MultiHeadDotProductAttention(width // 2)(x)
    return D(3)(x.mean(1) / width)


def normed(x, width):
    x = nn.Conv(width, (3, 3))(x) * width
    x = relu(nn.BatchNorm(use_running_average=True)(x))
    return D(3)(nn.avg_pool(x, (8, 8)).reshape(2, -1))


def shared(x, width):
    layer = D(width)
    x = relu(layer(x) * np.sqrt(width)) - layer(x) * np.sqrt(width)
    return D(3)(x)


ACCEPTED = {
    "scaled features": (lambda x, w: D(3)(relu(D(w)(x) * np.sqrt(w))), X),
    "scaled activations": (lambda x, w: D(3)(relu(D(w)(x)) * jnp.sqrt(jnp.float32(w))), X),
    "scaled logits": (lambda x, w: D(3)(relu(D(w)(x))) * w, X),
    "features times and over": (lambda x, w: D(3)(relu(D(w)(x) * w / jnp.sqrt(w))), X),
    "three layers over sqrt(fan-in)": (ntk, X),
    "equalised learning rate": (equalised, X),
    "scaled embedding": (
        lambda x, w: D(3)(relu(nn.Embed(9, w)(x) * np.sqrt(w))), TOKENS,
    ),
    "transformer": (transformer, TOKENS),
    "convolution before batch norm": (normed, IMAGE),
    "one layer, one number, twice": (shared, X),
    "rematerialised": (
        lambda x, w: D(3)(jax.checkpoint(lambda h: relu(h * w))(D(w)(x))), X,
    ),
    "of concatenated layers": (
        lambda x, w: D(3)(relu(jnp.concatenate([D(w)(x), D(w)(x)], -1) * w)), X,
    ),
}  # fmt: skip


@pytest.mark.parametrize("subnets", [2, 4])
@pytest.mark.parametrize("name", ACCEPTED)
def test_composes_exactly(name, subnets):
    call, x = ACCEPTED[name]
    network = network_of(call)
    assert_same(*composed_and_separate(network, subnets, x))
    stacked = random_stacked(network, subnets, x)
    assert any(leaf.factor != 1 for _, leaf in stacked.layout.leaves)
    assert dcjax.verify(network, stacked, x, tolerance=1e-5).layers
    composed = dcjax.compose(stacked)
    back = dcjax.extract(composed, like=stacked)
    chex.assert_trees_all_close(dcjax.compose(back), composed, rtol=1e-5)
    layout = stacked.layout.by_path
    for (keys, got), expected in zip(
        jax.tree_util.tree_leaves_with_path(back.tree), jax.tree.leaves(stacked.tree), strict=True
    ):
        if not layout[path_of(keys)].is_mean:
            np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_composes_exactly_in_training_mode():
    """The factor goes to the convolution: batch norm's epsilon allows no other place."""

    def call(x, width):
        x = nn.BatchNorm(use_running_average=False)(nn.Conv(width, (3, 3))(x) * width)
        return D(3)(relu(x).mean((1, 2)))

    network = network_of(call)
    stacked = dcjax.init(network, 2, jax.random.key(0), IMAGE, mutable=["batch_stats"])
    dcjax.verify(network, stacked, IMAGE, tolerance=1e-5, mutable=["batch_stats"])
    scaled = {path[1:] for path, leaf in stacked.layout.leaves if leaf.factor != 1}
    assert scaled == {("Conv_0", "kernel"), ("Conv_0", "bias")}


def two_places(x, width):
    layer = D(width)
    return D(3)(relu(layer(x) * width) + relu(layer(x)))


def two_numbers(x, width):
    layer = D(width)
    return D(3)(relu(layer(x) * width) + relu(layer(x) * np.sqrt(width)))


def one_head(x, width):
    x, head = relu(D(width)(x)), D(3)
    return head(x) * width, head(x)


def looped(x, width):
    x = D(width)(x)
    return D(3)(jax.lax.fori_loop(0, 2, lambda _, h: relu(h * width), x))


REFUSED = {
    "one layer with and without": two_places,
    "one layer, two numbers": two_numbers,
    "one head with and without": one_head,
    "features without a linear layer before": lambda x, w: D(3)(jnp.tanh(relu(D(w)(x)) * w)),
    "added to features": lambda x, w: D(3)(relu(D(w)(x) + w)),
    "beside a residual sum": lambda x, w: D(3)(relu((h := jnp.tanh(D(w)(x))) + h * w)),
    "times the input alone": lambda x, w: D(3)(relu(D(w)(jnp.tanh(x * w)))),
    "in a power": lambda x, w: D(3)(relu(D(w)(x)) ** jnp.float32(w)),
    "in a loop": looped,
    "negative in one network": lambda x, w: D(3)(relu(D(w)(x) * (w - 4.5))),
    "zero in one network": lambda x, w: D(3)(relu(D(w)(x) * (w - 2))),
    "normalised after": lambda x, w: D(3)((h := relu(D(w)(x)) * w) / (1 + jnp.abs(h))),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises(dcjax.NotSeparableError, match="a constant depends on the width"):
        dcjax.layout(network_of(REFUSED[name]), 4, X)


def test_an_unused_head_beside_numbers_of_the_width_is_refused():
    """Nothing tells its factor."""

    def call(x, width):
        x = relu(D(width)(x))
        _ = D(3, name="aux")(x) / np.sqrt(width)
        return D(3)(x)

    with pytest.raises(dcjax.NotSeparableError, match="params/aux/kernel"):
        dcjax.layout(network_of(call), 4, X)


def test_the_layout_prints_and_keeps_its_factors():
    layout = dcjax.layout(network_of(ACCEPTED["scaled features"][0]), 4, X)
    assert "block  6 , K×2  (times 0.5)" in str(layout)
    assert layout_from_json(json.loads(json.dumps(layout_to_json(layout)))) == layout
    for wrong in (0.0, -1.0, float("inf"), float("nan"), 1, "1", None, True):
        forged = layout_to_json(layout)
        forged["leaves"][0]["factor"] = wrong
        with pytest.raises(ValueError, match="not a layout"):
            layout_from_json(forged)


def test_saved_variables_keep_their_factors(tmp_path):
    stacked = random_stacked(network_of(ntk), 4, X)
    dcjax.save(tmp_path / "weights.safetensors", stacked)
    loaded = dcjax.load(tmp_path / "weights.safetensors")
    assert loaded.layout == stacked.layout
    chex.assert_trees_all_equal(dcjax.compose(loaded), dcjax.compose(stacked))


def test_other_libraries_and_weights():
    def network(params, x):
        hidden = relu(x @ params["hidden"] * np.sqrt(params["hidden"].shape[-1]))
        return hidden @ params["head"]

    def arguments(width, k):
        rng = np.random.default_rng(k)
        params = {"hidden": rng.normal(size=(6, width)), "head": rng.normal(size=(width, 2))}
        return jax.tree.map(jnp.float32, params), X

    sides = (network, network, arguments(2, 0), arguments(8, 0))
    trees = [arguments(2, k)[0] for k in range(4)]
    stacked = dcjax.stack(trees, like=dcjax.layout_of_functions(*sides, 4))
    assert dcjax.verify_functions(*sides, stacked).error < 1e-5
    weights = jnp.array([0.4, 0.3, 0.2, 0.1])
    assert dcjax.verify_functions(*sides, stacked, weights=weights).error < 1e-5


@pytest.mark.parametrize("name", ["three layers over sqrt(fan-in)", "scaled features"])
@pytest.mark.parametrize("optimizer", [optax.sgd(0.0, momentum=0.9), optax.adam(0.0)])
def test_optimiser_states_of_equal_subnetworks_are_the_global_network_s(name, optimizer):
    network = network_of(ACCEPTED[name][0])
    stacked = random_stacked(network, 4, X)["params"]
    equal = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), stacked)
    subnet, composed = dcjax.decompose(network, 4), dcjax.compose(equal)

    def cost(network, params, i):
        logits = network.apply({"params": params}, X * (i + 1))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(3)).mean()

    own, whole = optimizer.init(equal), optimizer.init(composed)
    for i in range(3):
        mine = jax.grad(lambda s, i=i: sum(cost(subnet, params, i) for params in s))(equal)
        theirs = jax.grad(lambda params, i=i: cost(network, params, i))(composed)
        own = optimizer.update(mine, own, equal)[1]
        whole = optimizer.update(theirs, whole, composed)[1]
    got = dcjax.compose_opt_state(optimizer, own, equal)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, whole)
    leaves = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(whole), strict=True)
    for (path, array), expected in leaves:
        where = jax.tree_util.keystr(path)
        on = array != 0  # first moments are zero off the diagonal
        scale = np.abs(expected).max() + 1e-30
        np.testing.assert_allclose(array[on], expected[on], atol=1e-4 * scale, err_msg=where)
        assert on.any(), where
        assert on.all() or ".nu" not in where
