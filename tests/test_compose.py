"""compose, extract, stack: pure functions of their arrays, exact inverses, clear errors."""

import chex
import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dcjax
from dcjax import Stacked
from tests.networks import DenseNet, ImageConcat, LeNet
from tests.test_contract import images, random_stacked
from tests.test_order import orders

X = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)


@pytest.fixture(scope="module")
def stacked():
    return random_stacked(DenseNet(8), 2, X)


def by_definition(stacked):
    """Composition written with index arrays, entry by entry of the layout's definition."""

    def leaf(path, parts):
        rule = stacked.layout.by_path[tuple(k.key for k in path)]
        subnets, parts = len(stacked), np.asarray(parts, np.float64)
        out = np.zeros(rule.global_shape(subnets))
        places = [order.indices(subnets) for order in rule.axes]
        for k in range(subnets):
            out[np.ix_(*(p[k] for p in places))] = parts[k] / (subnets if rule.head else 1)
        if not rule.axes or any(order.is_mixed or order.is_shared for order in rule.axes):
            fixed = [np.flatnonzero((p == p[0]).all(axis=0)) for p in places]
            apart = [o for o in rule.axes if not o.is_shared and not o.is_mixed]
            if not apart:
                out[np.ix_(*(p[0][f] for p, f in zip(places, fixed, strict=True)))] = np.mean(
                    parts[(slice(None), *np.ix_(*fixed))], axis=0
                )
        return out

    return jax.tree_util.tree_map_with_path(leaf, stacked.tree)


@pytest.mark.parametrize("build", [LeNet, DenseNet, ImageConcat])
@pytest.mark.parametrize("subnets", [2, 3])
def test_composition_is_what_the_layout_says(build, subnets):
    stacked = random_stacked(build(4 * subnets), subnets, X)
    chex.assert_trees_all_close(dcjax.compose(stacked), by_definition(stacked), rtol=1e-4)


@settings(deadline=None, max_examples=8)
@given(subnets=st.integers(1, 4), narrow=st.sampled_from([2, 4]), seed=st.integers(0, 99))
def test_extract_is_the_inverse(subnets, narrow, seed):
    layout = dcjax.layout(DenseNet(subnets * narrow), subnets, X)
    rng = np.random.default_rng(seed)
    tree: dict = {}
    for path, leaf in layout.leaves:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = rng.normal(size=(subnets, *leaf.narrow_shape)).astype(np.float32)
    composed = dcjax.compose(tree, like=layout)
    again = dcjax.extract(composed, like=layout)
    chex.assert_trees_all_close(dcjax.compose(again), composed, rtol=1e-6)
    kept = {k: v for k, v in tree["params"].items() if k != "Dense_0"}  # the head's bias is a mean
    chex.assert_trees_all_equal({k: again["params"].tree[k] for k in kept}, kept)


@settings(deadline=None, max_examples=30)
@given(axes=st.lists(orders, min_size=1, max_size=3).map(tuple), subnets=st.integers(1, 3))
@example(axes=(dcjax.Order((dcjax.Run(0),)), dcjax.Order((dcjax.Run(3),))), subnets=2)
def test_extract_reads_the_entries_that_the_layout_says(axes, subnets):
    rule = dcjax.LeafLayout(axes)
    shape = rule.global_shape(subnets)
    leaf = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    got = dcjax.extract({"a": leaf}, like=dcjax.Layout(subnets, ((("a",), rule),)))["a"]
    places = [order.indices(subnets) for order in axes]
    expected = np.stack([leaf[np.ix_(*(p[k] for p in places))] for k in range(subnets)])
    np.testing.assert_array_equal(np.asarray(got), expected)


def test_into_keeps_the_off_diagonal_blocks(stacked):
    composed = dcjax.compose(stacked)
    moved = jax.tree.map(lambda x: x + 1, composed)
    back = dcjax.compose(stacked, into=moved)
    kernel, old = back["params"]["Conv_1"]["kernel"], moved["params"]["Conv_1"]["kernel"]
    off = np.asarray(composed["params"]["Conv_1"]["kernel"]) == 0
    np.testing.assert_array_equal(np.asarray(kernel)[off], np.asarray(old)[off])
    chex.assert_trees_all_equal(dcjax.compose(dcjax.extract(back, like=stacked)), composed)


@pytest.mark.parametrize("build", [LeNet, ImageConcat])
def test_weighted_heads_compose_the_weighted_mean(build):
    network, x, weights = build(6), images((2, 8, 8, 3)), jnp.array([0.5, 0.5, 0.0])
    stacked = random_stacked(network, 3, x)
    logits = dcjax.apply(dcjax.decompose(network, 3), stacked, jnp.stack([x] * 3))
    composed = network.apply(dcjax.compose(stacked, weights=weights), x)
    np.testing.assert_allclose(composed, jnp.tensordot(weights, logits, 1), rtol=1e-4, atol=1e-5)
    dcjax.verify(network, stacked, x, weights=weights, tolerance=1e-5)
    labels = jnp.array([1, 3])
    found = dcjax.bounds(logits, labels, weights=weights)
    cost = optax.softmax_cross_entropy_with_integer_labels(composed, labels).mean()
    assert found.cost_lower <= cost <= found.cost_upper


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("collection", ["params", "batch_stats"])
def test_a_diverged_sub_network_with_weight_0_is_left_out(collection, value):
    network = dcjax.models.ResNet(depth=8, width=6, num_classes=5)
    x, weights = images((2, 8, 8, 3)), jnp.array([0.75, 0.0, 0.25])
    stacked = random_stacked(network, 3, x)
    sick = Stacked(dict(stacked.tree), stacked.layout)
    sick.tree[collection] = jax.tree.map(lambda leaf: leaf.at[1].set(value), sick.tree[collection])
    logits = dcjax.apply(dcjax.decompose(network, 3), stacked, jnp.stack([x] * 3))
    expected = 0.75 * logits[0] + 0.25 * logits[2]
    for compose in (dcjax.compose, jax.jit(dcjax.compose)):
        composed = network.apply(compose(sick, weights=weights), x)
        np.testing.assert_allclose(composed, expected, rtol=1e-4, atol=1e-5)


def test_a_finite_sub_network_with_weight_0_keeps_its_blocks(stacked):
    composed = dcjax.compose(stacked, weights=jnp.array([1.0, 0.0]))
    kernel = stacked.tree["params"]["Conv_0"]["kernel"][1]
    assert np.isin(kernel, composed["params"]["Conv_0"]["kernel"]).all()


def test_extract_undoes_a_weighted_head(stacked):
    weights = jnp.array([0.7, 0.3])
    back = dcjax.extract(dcjax.compose(stacked, weights=weights), like=stacked, weights=weights)
    for (path, got), own in zip(
        jax.tree_util.tree_leaves_with_path(back.tree["params"]),
        jax.tree.leaves(stacked["params"]),
        strict=True,
    ):
        if jax.tree_util.keystr(path) != "['Dense_0']['bias']":  # it is a mean
            np.testing.assert_allclose(got, own, rtol=1e-6)
    again = dcjax.compose(back, weights=weights)
    chex.assert_trees_all_close(again, dcjax.compose(stacked, weights=weights), rtol=1e-6)


def test_weights_that_do_not_fit_are_refused(stacked):
    for words, weights in {
        "sum to 1": jnp.array([0.5, 0.6]),
        "at least 0": jnp.array([1.5, -0.5]),
        r"shape \(2,\)": jnp.ones(3) / 3,
    }.items():
        with pytest.raises(ValueError, match=words):
            dcjax.compose(stacked, weights=weights)
    with pytest.raises(ValueError, match="floating"):
        dcjax.compose(stacked, weights=np.array([1, 0]))
    with pytest.raises(ValueError, match="weight 0"):
        dcjax.extract(dcjax.compose(stacked), like=stacked, weights=jnp.array([1.0, 0.0]))


@pytest.mark.usefixtures("unchecked")
def test_a_list_of_weights_is_taken(stacked):
    chex.assert_trees_all_equal(dcjax.compose(stacked, weights=[0.5, 0.5]), dcjax.compose(stacked))


def test_leaves_that_the_call_does_not_use_are_named_and_averaged():
    class Net(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.relu(nn.Conv(self.width, (3, 3))(x)).mean((1, 2))
            auxiliary = nn.Dense(5, name="auxiliary")(x)
            counter = self.variable("counters", "calls", lambda: jnp.int32(0))
            if self.is_mutable_collection("counters"):
                counter.value += 1
            logits = nn.Dense(5, name="head")(x)
            return (logits, auxiliary) if train else logits

    stacked = random_stacked(Net(), 2, images((1, 4, 4, 3)))
    rules = {"/".join(path[:2]): rule for path, rule in stacked.layout.leaves}
    assert {name for name, rule in rules.items() if not rule.used} == {
        "params/auxiliary", "counters/calls",
    }  # fmt: skip
    assert str(stacked.layout).count("unused") == 3
    stacked.tree["counters"]["calls"] = jnp.array([3, 5])
    for weights in (None, jnp.array([0.7, 0.3])):
        composed = dcjax.compose(stacked, weights=weights)
        assert composed["counters"]["calls"] == 3
        bias = stacked["params"].tree["auxiliary"]["bias"]
        np.testing.assert_allclose(composed["params"]["auxiliary"]["bias"], bias.mean(0), rtol=1e-6)


def test_compose_is_pure(stacked):
    eager = dcjax.compose(stacked)
    chex.assert_trees_all_equal(jax.jit(dcjax.compose)(stacked), eager)
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), stacked)
    doubled = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), eager)
    chex.assert_trees_all_close(jax.vmap(dcjax.compose)(pair), doubled, rtol=1e-6)


def test_gradient_of_compose_is_extraction_of_the_cotangent(stacked):
    params = stacked["params"]

    def weighted(params):
        leaves = jax.tree.leaves(dcjax.compose(params))
        return sum((i + 1.0) * jnp.sum(leaf) for i, leaf in enumerate(leaves))

    gradient = jax.grad(weighted)(params)
    assert isinstance(gradient, dcjax.Stacked)
    assert gradient.layout == params.layout
    names = [path for path, _ in params.layout.leaves]
    index = names.index(("Conv_1", "kernel")) + 1.0
    np.testing.assert_allclose(gradient.tree["Conv_1"]["kernel"], index)
    index = names.index(("Dense_0", "kernel")) + 1.0
    np.testing.assert_allclose(gradient.tree["Dense_0"]["kernel"], index / 2)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtypes_are_kept(stacked, dtype):
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), stacked)
    chex.assert_tree_all_finite(dcjax.compose(cast))
    for tree in (dcjax.compose(cast), dcjax.extract(dcjax.compose(cast), like=cast)):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}


def test_layout_travels_through_tree_map_jit_pmap_and_optax(stacked):
    params = stacked["params"]
    assert jax.tree.map(jnp.sin, params).layout is params.layout
    assert jax.jit(lambda p: p)(params).layout == params.layout
    assert jax.pmap(lambda p: jax.tree.map(jnp.cos, p))(params).layout == params.layout
    state = optax.adam(1e-3).init(params)
    assert state[0].mu.layout == params.layout
    chex.assert_trees_all_equal(
        dcjax.compose({"a": [stacked["batch_stats"]], "b": params}),
        {"a": [dcjax.compose(stacked)["batch_stats"]], "b": dcjax.compose(stacked)["params"]},
    )


def test_raw_trees_need_a_layout(stacked):
    with pytest.raises(ValueError, match=r"like=dcjax.layout\(network, K, x\)"):
        dcjax.compose(stacked.tree)
    with pytest.raises(ValueError, match="like"):
        dcjax.compose({})
    composed = dcjax.compose(stacked.tree, like=stacked.layout)
    chex.assert_trees_all_equal(composed, dcjax.compose(stacked))


def test_every_disagreement_is_listed(stacked):
    wrong = jax.tree.map(lambda leaf: leaf, stacked.tree)
    wrong["params"]["Conv_0"]["kernel"] = np.zeros((2, 1, 1))
    del wrong["params"]["Conv_0"]["bias"]
    wrong["params"]["extra"] = np.zeros(2)
    with pytest.raises(ValueError, match="expected shape") as error:
        dcjax.compose(wrong, like=stacked)
    for words in ("Conv_0/kernel: expected", "Conv_0/bias: missing", "extra: not expected"):
        assert words in str(error.value)
    with pytest.raises(ValueError, match="Conv_0/kernel: expected shape"):
        dcjax.extract(stacked.tree, like=stacked)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), dcjax.compose(stacked))
    with pytest.raises(ValueError, match="bfloat16 in into="):
        dcjax.compose(stacked, into=half)
    with pytest.raises(TypeError, match="like is"):
        dcjax.compose(stacked.tree, like="layout")


def test_leaves_that_jax_cannot_compute_with_are_named(stacked):
    for leaf, words in [
        (np.full((2, 5), "a"), "<U1"),
        (np.full((2, 5), None), "object"),
        (np.ma.ones((2, 5)), "masked"),
        (np.full((2, 5), 2**40), "beyond JAX's int32"),
        (np.full((2, 5), 1e300), "beyond JAX's float32"),
        (object(), "not an array"),
        ("a", "not an array"),
        (set(), "not an array"),
    ]:
        wrong = jax.tree.map(lambda x: x, stacked)
        wrong.tree["params"]["Dense_0"]["bias"] = leaf
        with pytest.raises(ValueError, match=f"params/Dense_0/bias .*{words}"):
            dcjax.compose(wrong)
    for tree in ({1: 0.0, "1": 0.0}, {"params": {1: 0.0, "1": 0.0}}):
        with pytest.raises(TypeError, match="pytree"):
            dcjax.compose(tree, like=stacked)


def test_integers_are_not_divided_or_averaged(stacked):
    """A head of ones would become zeros, without a word."""
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), stacked)
    for call in (dcjax.compose, lambda tree: dcjax.extract(tree, like=stacked)):
        tree = whole if call is dcjax.compose else jax.tree.map(
            lambda leaf: leaf.astype(jnp.int32), dcjax.compose(stacked))  # fmt: skip
        with pytest.raises(ValueError, match="Dense_0/kernel: int32") as error:
            call(tree)
        assert "Dense_0/bias: int32" in str(error.value)
        assert "Conv_1/kernel" not in str(error.value)  # copied as it is
    keys = jax.tree.map(lambda x: x, stacked)
    shape = keys.tree["params"]["Conv_1"]["bias"].shape
    keys.tree["params"]["Conv_1"]["bias"] = jax.random.split(jax.random.key(0), shape)
    with pytest.raises(ValueError, match="random keys"):
        dcjax.compose(keys)


def test_into_holds_values(stacked):
    into = dcjax.compose(stacked)
    into["params"] = jax.eval_shape(lambda: into["params"])
    with pytest.raises(ValueError, match=r"must hold values(.|\n)*  params/Conv_0/bias"):
        dcjax.compose(stacked, into=into)


def test_into_takes_other_containers_of_the_same_paths(stacked):
    wide = jax.tree.map(lambda leaf: leaf + 1, dcjax.compose(stacked))
    expected = dcjax.compose(stacked, into=wide)
    composed = dcjax.compose(stacked, into=flax.core.freeze(wide))
    chex.assert_trees_all_equal(composed, expected)
    params = {"a": stacked["params"]}
    for wrong in (wide, [wide], {"a": wide["params"], "b": 1}, 3):
        with pytest.raises(ValueError, match="have the structure of params"):
            dcjax.compose(params, into=wrong)
    with pytest.raises(ValueError, match="missing"):
        dcjax.compose(params, into={"a": None})


def test_a_stacked_tree_without_a_layout_is_refused(stacked):
    without = dcjax.Stacked(stacked.tree, None)
    assert "Stacked(?" in repr(without)
    calls = [dcjax.compose, dcjax.unstack, lambda s: dcjax.extract(s.tree, like=s)]
    for call in calls:
        with pytest.raises(TypeError, match="a Stacked whose layout is NoneType"):
            call(without)


def test_stack_takes_any_iterable(stacked):
    trees = dcjax.unstack(stacked)
    chex.assert_trees_all_equal(dcjax.stack((tree for tree in trees), like=stacked), stacked)
    for wrong in (trees[0], "ab"):
        with pytest.raises(ValueError, match="do not fit the layout"):
            dcjax.stack(wrong, like=stacked)
    frozen = flax.core.freeze(trees[1])
    with pytest.raises(ValueError, match="FrozenDict"):
        dcjax.stack([trees[0], frozen], like=stacked)
    with pytest.raises(ValueError, match="sub-network 1: params/Conv_0/bias is object"):
        dcjax.stack([trees[0], jax.tree.map(lambda _: object(), trees[1])], like=stacked)


def test_unstack_takes_only_what_is_stacked(stacked):
    for wrong in (None, stacked.tree, [1, 2]):
        with pytest.raises(TypeError, match="Stacked"):
            dcjax.unstack(wrong)
    longer = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), stacked)
    with pytest.raises(ValueError, match=r"params/Dense_0/bias has shape \(4, 5\)"):
        dcjax.unstack(longer)


def test_stack_and_unstack(stacked):
    trees = dcjax.unstack(stacked)
    chex.assert_trees_all_equal(dcjax.stack(trees, like=stacked), stacked)
    with pytest.raises(ValueError, match="2 sub-networks, got 1"):
        dcjax.stack(trees[:1], like=stacked)
    odd = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), trees[1])
    with pytest.raises(ValueError, match="float16 in sub-network 1"):
        dcjax.stack([trees[0], odd], like=stacked)
    changed = jax.tree.map(lambda leaf: leaf, trees[1])
    changed["params"]["Dense_0"]["bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="sub-network 1: params/Dense_0/bias: expected shape"):
        dcjax.stack([trees[0], changed], like=stacked)
    del changed["params"]["Dense_0"]["bias"]
    with pytest.raises(ValueError, match="sub-network 1: params/Dense_0/bias: missing"):
        dcjax.stack([trees[0], changed], like=stacked)


def test_a_stacked_tree_is_indexed_by_number_and_name(stacked):
    assert len(stacked) == 2
    chex.assert_trees_all_equal(stacked[-1], stacked[1])
    chex.assert_trees_all_equal(list(stacked), [stacked[0], stacked[1]])
    assert stacked["params"]["Dense_0"]["bias"].tree.shape == (2, 5)
    with pytest.raises(IndexError, match="0 to 1"):
        stacked[2]
    with pytest.raises(KeyError, match="batch_stats"):
        stacked["parms"]
    with pytest.raises(TypeError, match="float"):
        stacked[1.0]
    assert "params" in stacked
    assert 7 not in stacked


def test_flax_does_not_hang_on_a_stacked_tree(stacked):
    with pytest.raises(Exception):  # noqa: B017, PT011  Flax's own complaint, whichever
        DenseNet(8).apply(stacked, jnp.zeros(X.shape))


def test_layout_is_printed_and_compared(stacked):
    table = str(stacked.layout)
    assert "params/Conv_2/kernel" in table
    assert "K×4 + K×2" in table
    other = dcjax.layout(DenseNet(8), 2, X)
    assert other == stacked.layout
    assert hash(other) == hash(stacked.layout)
    assert other != dcjax.layout(DenseNet(8), 4, X)
    with pytest.raises(KeyError, match="params"):
        stacked.layout["parms"]
