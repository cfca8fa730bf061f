"""`training.scale_blocks`: which entries of an update belong to the sub-networks' blocks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcjax
from dcjax import training

X = jnp.zeros((2, 8, 8, 3))


@pytest.fixture(scope="module")
def params():
    stacked = dcjax.init(dcjax.models.CNN(width=4, num_classes=3), 2, jax.random.key(0), X)
    return stacked["params"]


@pytest.fixture(scope="module")
def on_diagonal(params):
    """True in the entries that composition writes, found by writing."""
    ones = jax.tree.map(jnp.ones_like, params)
    zeros = jax.tree.map(jnp.zeros_like, dcjax.compose(params))
    return jax.tree.map(lambda leaf: leaf != 0, dcjax.compose(ones, into=zeros))


def updates(params):
    rng = np.random.default_rng(0)
    wide = dcjax.compose(params)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), wide)


def test_each_part_has_its_factor(params, on_diagonal):
    u = updates(params)
    blocks = training.scale_blocks(params, diagonal=2.0, off_diagonal=0.5)
    got, _ = jax.jit(blocks.update)(u, blocks.init(u))
    expected = jax.tree.map(lambda u, mask: jnp.where(mask, 2.0, 0.5) * u, u, on_diagonal)
    chex.assert_trees_all_close(got, expected, rtol=1e-6)
    # Both parts are there: the second convolution's kernel has blocks between the sub-networks.
    assert sum(int((~mask).sum()) for mask in jax.tree.leaves(on_diagonal)) > 0


def test_schedules_are_of_the_step(params, on_diagonal):
    u = updates(params)
    frozen = optax.schedules.join_schedules([lambda _: 0.0, lambda _: 1.0], [2])
    blocks = training.scale_blocks(params.layout, diagonal=frozen)
    state = blocks.init(u)
    for step in range(4):
        got, state = blocks.update(u, state)
        factor = 0.0 if step < 2 else 1.0
        expected = jax.tree.map(lambda u, m, f=factor: jnp.where(m, f, 1.0) * u, u, on_diagonal)
        chex.assert_trees_all_close(got, expected, rtol=1e-6)


def test_without_the_blocks_between_the_subnetworks_stay_apart(params):
    """o = 0: training the composed network trains the sub-networks, on the ensemble's loss."""
    wide = dcjax.compose(params)
    optimizer = optax.chain(optax.sgd(0.1), training.scale_blocks(params, off_diagonal=0.0))
    change, _ = optimizer.update(updates(params), optimizer.init(wide), wide)
    after = optax.apply_updates(wide, change)
    chex.assert_trees_all_close(after, dcjax.compose(dcjax.extract(after, like=params)), rtol=1e-6)


def test_updates_of_another_network_are_refused(params):
    blocks = training.scale_blocks(params)
    other = {"head": {"kernel": jnp.ones((3, 3))}}
    with pytest.raises(ValueError, match="head/kernel"):
        blocks.update(other, blocks.init(other))


def test_the_head_has_a_factor_of_its_own(params, on_diagonal):
    u = updates(params)
    blocks = training.scale_blocks(params, diagonal=2.0, off_diagonal=0.5, head=0.25)
    got, _ = jax.jit(blocks.update)(u, blocks.init(u))
    expected = jax.tree.map(lambda u, mask: jnp.where(mask, 2.0, 0.5) * u, u, on_diagonal)
    expected["head"]["kernel"] = 0.5 * u["head"]["kernel"]
    chex.assert_trees_all_close(got, expected, rtol=1e-6)


@pytest.mark.parametrize("subnets", [2, 4])
def test_with_a_kth_the_head_moves_the_logits_as_one_of_the_subnetworks_does(subnets):
    """Where all sub-networks are the same, and so are their gradients."""
    network = dcjax.models.CNN(width=2 * subnets, num_classes=3)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    stacked = dcjax.init(network, subnets, jax.random.key(0), x)
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * subnets), stacked)
    narrow, wide = dcjax.decompose(network, subnets), dcjax.compose(same)

    def moved(network, variables, optimizer):
        """The logits after a step of the head's kernel, less those before."""

        def logits(kernel):
            head = {**variables["params"]["head"], "kernel": kernel}
            return network.apply({**variables, "params": {**variables["params"], "head": head}}, x)

        def cost(params):
            z = network.apply({**variables, "params": params}, x)
            labels = jnp.array([0, 1, 2, 0])
            return optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()

        params = variables["params"]
        change, _ = optimizer.update(jax.grad(cost)(params), optimizer.init(params), params)
        kernel = params["head"]["kernel"]
        return logits(kernel + change["head"]["kernel"]) - logits(kernel)

    own = moved(narrow, same[0], optax.sgd(0.1))
    factor = training.scale_blocks(same.layout["params"], head=1 / subnets)
    chex.assert_trees_all_close(
        moved(network, wide, optax.chain(optax.sgd(0.1), factor)), own, rtol=1e-3, atol=1e-6
    )
    plain = moved(network, wide, optax.sgd(0.1))
    chex.assert_trees_all_close(plain, subnets * own, rtol=1e-3, atol=1e-6)
