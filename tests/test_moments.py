"""Composed optimiser states: what the global network's optimiser would have come to by itself."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcjax
from tests.networks import ImageConcat, LeNet, WideGroups
from tests.test_contract import images, random_stacked


def kernels(params):
    def is_kernel(path, _):
        return "kernel" in jax.tree_util.keystr(path)

    return jax.tree_util.tree_map_with_path(is_kernel, params)


WEIGHTS = jnp.array([0.5, 0.3, 0.2])
OPTIMIZERS = {
    "momentum": optax.sgd(0.0, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.0),
    "amsgrad": optax.amsgrad(0.0),
    "adagrad": optax.adagrad(0.0, initial_accumulator_value=0.0),
    "rmsprop, accumulated": optax.MultiSteps(optax.rmsprop(0.0), 2).gradient_transformation(),
    "masked": optax.masked(optax.adam(0.0), kernels),
    "scheduled": optax.chain(optax.clip(1e9), optax.lion(optax.constant_schedule(0.0))),
}


def cost(network, params, x, labels):
    logits = network.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def equal_subnetworks(network, subnets):
    """K equal sub-networks, and their gradients and the composed network's on a few batches."""
    drawn = random_stacked(network, subnets, images((1, 8, 8, 3)))["params"]
    equal = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), drawn)
    subnet = dcjax.decompose(network, subnets)
    batches = [(images((4, 8, 8, 3)) * (i + 1), np.array([0, 1, 2, i])) for i in range(4)]

    @jax.jit
    def own(x, labels):
        return jax.grad(lambda s: sum(cost(subnet, params, x, labels) for params in s))(equal)

    @jax.jit
    def whole(composed, x, labels):
        return jax.grad(lambda params: cost(network, params, x, labels))(composed)

    def gradients(weights=None):
        composed = dcjax.compose(equal, weights=weights)
        return composed, [(own(*batch), whole(composed, *batch)) for batch in batches]

    return equal, gradients


def states_after_batches(network, optimizer, subnets, weights=None):
    """The sub-networks' state and the global network's, whose parameters stay as they are."""
    equal, gradients = equal_subnetworks(network, subnets)
    composed, steps = gradients(weights)
    own, whole = optimizer.init(equal), optimizer.init(composed)
    update = jax.jit(optimizer.update)
    for mine, theirs in steps:
        own, whole = update(mine, own, equal)[1], update(theirs, whole, composed)[1]
    return own, whole


def diagonal(tree, layout):
    """What a global tree of the parameters' shape has in the sub-networks' places."""
    return dcjax.compose(dcjax.extract(tree, like=layout))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equal_subnetworks_compose_to_the_global_optimizer_s_own_state(name):
    own, whole = states_after_batches(LeNet(6), OPTIMIZERS[name], 3)
    composed = dcjax.compose_opt_state(own)
    assert jax.tree.structure(composed) == jax.tree.structure(whole)
    leaves = zip(jax.tree_util.tree_leaves_with_path(composed), jax.tree.leaves(whole), strict=True)
    second = 0
    for (path, got), expected in leaves:
        assert got.dtype == expected.dtype
        name = jax.tree_util.keystr(path)
        scale = np.abs(expected).max() + 1e-30
        if any(field in name for field in (".nu", "sum_of_squares")):
            second += 1  # off the diagonal too: the fill is exact where the sub-networks are equal
            np.testing.assert_allclose(got, expected, atol=1e-4 * scale, rtol=1e-4, err_msg=name)
        else:
            on = np.asarray(got) != 0
            np.testing.assert_allclose(
                np.asarray(got)[on], np.asarray(expected)[on], atol=1e-4 * scale, err_msg=name
            )
            assert on.any() or not np.any(expected)
    assert second or name not in ("adam", "amsgrad", "adagrad")


@pytest.mark.parametrize("network", [WideGroups(6), ImageConcat(6)])
def test_weighted_heads_scale_each_body_by_its_weight(network):
    own, whole = states_after_batches(network, optax.trace(0.9), 3, WEIGHTS)
    composed = dcjax.compose_opt_state(own, weights=WEIGHTS)
    layout = own.trace.layout
    on = jax.tree.map(lambda leaf: leaf != 0, composed.trace)
    expected = jax.tree.map(lambda leaf, here: jnp.where(here, leaf, 0), whole.trace, on)
    chex.assert_trees_all_close(composed.trace, expected, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(diagonal(composed.trace, layout), composed.trace, rtol=1e-5)


def test_adam_s_first_step_off_the_diagonal_is_no_larger_than_the_rate():
    """What the filled second moments are for: zeros there would give 3.2 times the rate."""
    network, optimizer = LeNet(6), optax.adam(1.0)
    stacked = random_stacked(network, 3, images((1, 8, 8, 3)))["params"]
    subnet, state = dcjax.decompose(network, 3), optimizer.init(stacked)
    x, labels = images((16, 8, 8, 3)), np.arange(16) % 5
    gradient = jax.jit(jax.grad(lambda s: sum(cost(subnet, p, x, labels) for p in s)))(stacked)
    # What Adam comes to when the gradient has been this one for long.
    squares = jax.tree.map(jnp.square, gradient)
    state = (state[0]._replace(count=jnp.int32(10**6), mu=gradient, nu=squares), *state[1:])
    composed = dcjax.compose(stacked)
    gradient = jax.jit(jax.grad(lambda p: cost(network, p, x, labels)))(composed)

    def largest(state):
        change = optimizer.update(gradient, state)[0]["Conv_1"]["kernel"]
        return np.abs(np.where(composed["Conv_1"]["kernel"] == 0, change, 0)).max()

    filled = dcjax.compose_opt_state(state)
    nu = jax.tree.map(lambda n, p: jnp.where(p == 0, 0, n), filled[0].nu, composed)
    unfilled = (filled[0]._replace(nu=nu), *filled[1:])
    assert largest(unfilled) > 3
    assert largest(filled) < 1.5


def test_a_state_for_each_subnetwork():
    """As from vmap or pmap: counts and keys have the leading axis K."""
    stacked = random_stacked(LeNet(4), 2, images((1, 8, 8, 3)))["params"]
    optimizer = optax.chain(optax.adam(0.1), optax.add_noise(0.1, 0.5, key=jax.random.key(0)))
    state = jax.vmap(optimizer.init)(stacked)
    composed = dcjax.compose_opt_state(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(composed, optimizer.init(dcjax.compose(stacked)))
    hyper = jax.vmap(optax.inject_hyperparams(optax.adam)(0.5).init)(stacked)
    assert dcjax.compose_opt_state(hyper).hyperparams["learning_rate"] == 0.5


def test_it_is_pure():
    stacked = random_stacked(LeNet(4), 2, images((1, 8, 8, 3)))["params"]
    state = optax.adam(0.1).init(stacked)
    chex.assert_trees_all_equal(
        jax.jit(dcjax.compose_opt_state)(state), dcjax.compose_opt_state(state)
    )


class Odd(NamedTuple):
    """A state with a field that optax has not."""

    gradient: dcjax.Stacked


def test_what_is_not_known_is_refused_by_name():
    stacked = random_stacked(LeNet(4), 2, images((1, 8, 8, 3)))["params"]
    with pytest.raises(ValueError, match=r"'gradient'.*dcjax.MOMENTS"):
        dcjax.compose_opt_state({"a": Odd(gradient=stacked)})
    known = dcjax.compose_opt_state(Odd(stacked), moments={**dcjax.MOMENTS, "gradient": 1})
    chex.assert_trees_all_equal_shapes(known.gradient, dcjax.compose(stacked))
    with pytest.raises(ValueError, match=r"optimizer.init\(stacked\['params'\]\)"):
        dcjax.compose_opt_state(optax.adam(0.1).init(stacked.tree))
    with pytest.raises(ValueError, match="Adafactor"):
        dcjax.compose_opt_state(optax.trace(0.9).init(jax.tree.map(lambda x: x[:1], stacked)))
    with pytest.raises(ValueError, match="sum to 1"):
        dcjax.compose_opt_state(optax.trace(0.9).init(stacked), weights=jnp.array([0.5, 0.6]))
    other = random_stacked(LeNet(6), 3, images((1, 8, 8, 3)))["params"]
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        dcjax.compose_opt_state([optax.trace(0.9).init(stacked), optax.trace(0.9).init(other)])
