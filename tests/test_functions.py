"""Networks that are not Linen modules: NNX states, Equinox modules, Haiku transforms."""

import inspect

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dcjax
from tests.test_contract import images


class NNXNet(nnx.Module):
    """Convolution, batch norm, dropout (whose random state the call never uses), a flatten."""

    def __init__(self, width, rngs):
        self.conv = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.head = nnx.Linear(16 * width, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(self.dropout(x).reshape(x.shape[0], -1))


def test_nnx_states_split_and_merge():
    x = images((2, 4, 4, 3))
    network = NNXNet(4, nnx.Rngs(9))
    subnets = [NNXNet(2, nnx.Rngs(seed)) for seed in (1, 2)]
    states = [nnx.state(subnet) for subnet in subnets]
    sides = dcjax.functions_of_modules(subnets[0], network, x)
    layout = dcjax.layout_of_functions(*sides, 2)
    unused = {"/".join(path): leaf for path, leaf in layout.leaves if not leaf.used}
    assert {name.removesuffix("/value") for name in unused} == {
        "dropout/rngs/key",
        "dropout/rngs/count",
    }
    stacked = dcjax.stack(states, like=layout)
    report = dcjax.verify_functions(*sides, stacked, tolerance=1e-5)
    assert report.layers[-1].layer == "result 0"
    assert any("test_functions.py:" in row.layer for row in report.layers)
    composed = dcjax.compose(stacked)
    assert isinstance(composed, nnx.State)
    nnx.update(network, composed)
    separate = np.mean([subnet(x) for subnet in subnets], axis=0)
    np.testing.assert_allclose(network(x), separate, rtol=1e-5, atol=1e-6)
    back = dcjax.extract(composed, like=layout)
    assert isinstance(back[1], nnx.State)
    kernel = back[1]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[...], states[1]["conv"]["kernel"][...])


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, width, key):
        self.conv = eqx.nn.Conv2d(3, width, 3, padding=1, key=key)
        self.head = eqx.nn.Linear(16 * width, 5, key=key)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.conv(x)).reshape(-1))


def test_equinox_modules():
    x = images((3, 4, 4))
    subnets = [EquinoxNet(2, jax.random.key(k)) for k in range(3)]
    wide = eqx.filter_eval_shape(EquinoxNet, 6, jax.random.key(0))
    sides = dcjax.functions_of_modules(subnets[0], wide, x)
    arrays = [eqx.filter(net, eqx.is_array) for net in subnets]
    stacked = dcjax.stack(arrays, like=dcjax.layout_of_functions(*sides, 3))
    assert dcjax.verify_functions(*sides, stacked).error < 1e-5
    # Equinox keeps sizes in the tree's structure: the wide one's is needed for the wide leaves.
    places, static = eqx.partition(wide, lambda leaf: hasattr(leaf, "shape"))
    composed = jax.tree.unflatten(
        jax.tree.structure(places), jax.tree.leaves(dcjax.compose(stacked))
    )
    composed = eqx.combine(composed, static)
    separate = np.mean([net(x) for net in subnets], axis=0)
    np.testing.assert_allclose(composed(x), separate, rtol=1e-5, atol=1e-6)


def test_haiku_transforms():
    def build(width):
        def network(x, is_training):
            x = jax.nn.relu(hk.Conv2D(width, 3)(x))
            x = hk.BatchNorm(True, True, 0.9)(x, is_training)
            return hk.Linear(5)(hk.Flatten()(x))

        return hk.without_apply_rng(hk.transform_with_state(network))

    x = images((2, 4, 4, 3))
    narrow, wide = build(2), build(4)
    variables = [narrow.init(jax.random.key(k), x, True) for k in range(2)]
    layout = dcjax.layout_of_functions(
        # Evaluation reads the averages, but not the sums that they are made of: training does.
        lambda variables, x: [narrow.apply(*variables, x, train)[0] for train in (False, True)],
        lambda variables, x: [wide.apply(*variables, x, train)[0] for train in (False, True)],
        (variables[0], x),
        (jax.eval_shape(lambda key: wide.init(key, x, True), jax.random.key(0)), x),
        2,
    )
    composed = dcjax.compose(dcjax.stack(variables, like=layout))
    separate = np.mean([narrow.apply(*pair, x, False)[0] for pair in variables], axis=0)
    np.testing.assert_allclose(wide.apply(*composed, x, False)[0], separate, rtol=1e-5, atol=1e-6)
    unused = {path for path, leaf in layout.leaves if not leaf.used}
    assert any("counter" in path for path in unused)  # of its moving averages


class TwoHeads(nnx.Module):
    """A second head in training only, and a kernel that two layers share."""

    def __init__(self, width, rngs):
        self.body, self.again = (nnx.Linear(6, 6 * width, rngs=rngs) for _ in range(2))
        self.again.kernel = self.body.kernel
        self.head, self.aux = (nnx.Linear(6 * width, 3, rngs=rngs) for _ in range(2))

    def __call__(self, x, train=False):
        x = nnx.relu(self.body(x)) + jnp.tanh(self.again(x))
        return (self.head(x), self.aux(x)) if train else self.head(x)


def test_modules_with_a_call_of_their_own():
    x, network = images((4, 6)), TwoHeads(6, nnx.Rngs(0))
    subnets = [TwoHeads(2, nnx.Rngs(k)) for k in range(3)]
    with pytest.raises(dcjax.NotSeparableError, match=r"aux.* \(leaf\): no result of the traced"):
        dcjax.layout_of_functions(*dcjax.functions_of_modules(subnets[0], network, x), 3)
    abstract = nnx.eval_shape(lambda: TwoHeads(6, nnx.Rngs(0)))
    for wide in (network, abstract):
        sides = dcjax.functions_of_modules(subnets[0], wide, x, call=lambda net, x: net(x, True))
        layout = dcjax.layout_of_functions(*sides, 3)
        stacked = dcjax.stack([nnx.state(subnet) for subnet in subnets], like=layout)
        assert dcjax.verify_functions(*sides, stacked).error < 1e-5
    nnx.update(network, dcjax.compose(stacked))
    for i, together in enumerate(network(x, True)):
        separate = np.mean([subnet(x, True)[i] for subnet in subnets], axis=0)
        np.testing.assert_allclose(together, separate, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("module", [jnp.tanh, None, 3, nn.Dense(3), jnp.ones(3), {"a": "b"}])
def test_what_is_not_a_module_of_nnx_or_equinox_has_other_functions(module):
    with pytest.raises(TypeError, match=r"expected a module of Flax NNX.*layout_of_functions"):
        dcjax.functions_of_modules(module, module, jnp.ones((1, 3)))


def affine(params, x):
    return x @ params["kernel"] @ params["head"] + params["shift"]


def affine_params(width):
    return {"kernel": np.ones((3, width)), "head": np.ones((width, 5)), "shift": 2.0}


def test_python_s_numbers_are_leaves():
    narrow, x = affine_params(2), jnp.ones((1, 3))
    for subnets in (1, 2):
        tree = affine_params(2 * subnets)
        layout = dcjax.layout_of_functions(affine, affine, (narrow, x), (tree, x), subnets)
        shapes = {path: leaf.global_shape(subnets) for path, leaf in layout.leaves}
        assert shapes == {(name,): np.shape(leaf) for name, leaf in tree.items()}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("narrow cannot be called .* not a callable", {"narrow": None}),
        ("wide_args is a tuple", {"wide_args": ()}),
        ("wide_args is a tuple", {"wide_args": {"kernel": 1.0}}),
        ("narrow cannot be called with 1 arg", {"narrow_args": ({},)}),
        ("narrow_args/0/kernel is str", {"narrow_args": ({"kernel": "a"}, jnp.ones(3))}),
        ("wide_args/1 is .* object", {"wide_args": ({}, np.array([None, object()]))}),
        ("result must be arrays: got none", {"narrow": lambda params, x: None}),
        ("not a valid JAX type", {"wide": lambda params, x: {"text": "a"}}),
        ("must be an int", {"subnets": np.array([2])}),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(words, change):
    x = jnp.ones((1, 3))
    narrow, wide = affine_params(2), affine_params(4)
    args = {"narrow": affine, "wide": affine, "narrow_args": (narrow, x), "wide_args": (wide, x),
            "subnets": 2}  # fmt: skip
    with pytest.raises(TypeError, match=words):
        dcjax.layout_of_functions(**{**args, **change})


def test_inputs_of_other_ranks_are_refused():
    def ravelled(params, x):
        return x.reshape(1, -1) @ params["kernel"]

    narrow, wide = ({"kernel": jnp.ones((3, n))} for n in (2, 4))
    with pytest.raises(
        ValueError, match="inputs of the sub-network and the global network must have one structure"
    ):
        dcjax.layout_of_functions(
            ravelled, ravelled, (narrow, jnp.ones((1, 3))), (wide, jnp.ones(3)), 2
        )


def test_an_operation_outside_of_modules_is_refused_at_its_line():
    def softmax(params, x):
        return jax.nn.softmax(x @ params["kernel"]) @ params["head"]

    line = softmax.__code__.co_firstlineno + 1
    narrow, wide = affine_params(2), affine_params(4)
    with pytest.raises(dcjax.NotSeparableError, match=rf"1\. tests/\w+.py:{line} \(\w+\): "):
        dcjax.layout_of_functions(
            softmax, softmax, (narrow, jnp.ones((1, 3))), (wide, jnp.ones((1, 3))), 2
        )


class NNXNorms(nnx.Module):
    def __init__(self, width):
        self.stem, self.head = (nnx.Linear(*s, rngs=nnx.Rngs(0)) for s in ((6, width), (width, 3)))
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=nnx.Rngs(0)) for _ in range(2)])

    def __call__(self, x):
        x = self.norms[0](self.stem(x))
        x = nnx.relu(x)
        x = self.norms[1](x)
        return self.head(x)


class EquinoxNorms(eqx.Module):
    stem: eqx.nn.Linear
    norms: list[eqx.nn.LayerNorm]
    head: eqx.nn.Linear

    def __init__(self, width):
        self.stem = eqx.nn.Linear(6, width, key=jax.random.key(0))
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2)]
        self.head = eqx.nn.Linear(width, 3, key=jax.random.key(0))

    def __call__(self, x):
        x = self.norms[0](self.stem(x))
        x = jax.nn.relu(x)
        x = self.norms[1](x)
        return self.head(x)


def nnx_parts(width):
    graph, state = nnx.split(NNXNorms(width))
    return lambda state, x: nnx.merge(graph, state)(x), state


def equinox_parts(width):
    arrays, rest = eqx.partition(EquinoxNorms(width), eqx.is_array)
    return lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x), arrays


@pytest.mark.parametrize(("parts", "kind"), [(nnx_parts, NNXNorms), (equinox_parts, EquinoxNorms)])
def test_each_of_two_norms_is_refused_at_its_line(parts, kind):
    (f, narrow), (g, wide) = parts(2), parts(8)
    with pytest.raises(dcjax.NotSeparableError) as error:
        dcjax.layout_of_functions(f, g, (narrow, images((2, 6))), (wide, images((2, 6))), 4)
    places = [violation.path.split(", ")[-1] for violation in error.value.violations]
    line = inspect.unwrap(kind.__call__).__code__.co_firstlineno
    assert places == [f"tests/test_functions.py:{line + 1}", f"tests/test_functions.py:{line + 3}"]


def test_trees_of_two_structures_are_refused():
    def f(params, x):
        return x @ params["a"]

    one, x = {"a": jnp.ones((2, 2))}, jnp.ones((1, 2))
    with pytest.raises(ValueError, match="b is only in the global network"):
        dcjax.layout_of_functions(f, f, (one, x), (one | {"b": jnp.ones(2)}, x), 2)


def side_by_side(params, x):
    """A network whose input holds the sub-networks' inputs side by side, and with two results."""
    x = jnp.tanh(x @ params["stem"])
    return {"a": x @ params["head"], "b": x @ params["other"] + params["bias"]}


def arguments(width, rng):
    shapes = {"stem": (width, 2 * width), "head": (2 * width, 3), "other": (2 * width, 5)}
    params = {name: rng.normal(size=shape) for name, shape in (shapes | {"bias": (5,)}).items()}
    return jax.tree.map(jnp.float32, params), jnp.asarray(rng.normal(size=(4, width)), jnp.float32)


def sides_and_stacked():
    rng = np.random.default_rng(0)
    sides = (side_by_side, side_by_side, arguments(2, rng), arguments(6, rng))
    trees = [arguments(2, rng)[0] for _ in range(3)]
    return sides, dcjax.stack(trees, like=dcjax.layout_of_functions(*sides, 3))


def test_verify_functions_gives_each_sub_network_its_input():
    sides, stacked = sides_and_stacked()
    report = dcjax.verify_functions(*sides, stacked, tolerance=1e-5)
    assert [row.layer for row in report.layers][-2:] == ["result 0", "result 1"]
    weighted = dcjax.verify_functions(*sides, stacked, weights=jnp.array([0.5, 0.5, 0.0]))
    assert weighted.error < 1e-5
    whole = sides[2]
    one = dcjax.stack([whole[0]], like=dcjax.layout_of_functions(*sides[:2], whole, whole, 1))
    assert dcjax.verify_functions(*sides[:2], whole, whole, one).error == 0


def test_verify_functions_finds_what_is_wrong(monkeypatch):
    sides, stacked = sides_and_stacked()

    def wrong(stacked, **_):
        return jax.tree.map(lambda leaf: leaf[::-1], dcjax.compose(stacked))

    with pytest.raises(ValueError, match="not belong to this network"):
        dcjax.verify_functions(*sides, stacked["head"])
    abstract = jax.eval_shape(lambda: sides[3])
    with pytest.raises(TypeError, match="must be numbers"):
        dcjax.verify_functions(*sides[:3], abstract, stacked)
    monkeypatch.setattr("dcjax._linen.verify.compose", wrong)
    with pytest.raises(ValueError, match="differs from its sub-networks"):
        dcjax.verify_functions(*sides, stacked)
