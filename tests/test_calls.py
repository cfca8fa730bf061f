"""Several calls traced together, and the refusal of leaves that no result of the traced."""

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dcjax
from tests.test_contract import assert_same, images

X = images((3, 6))
TRAINING = {"train": True, "mutable": ["batch_stats"]}
UNUSED = pytest.raises(
    dcjax.NotSeparableError, match=r"params/aux/kernel .*no result of the traced"
)


class Auxiliary(nn.Module):
    """Inception's second head, which is used in training only; batch norm and dropout."""

    width: int = 8

    def setup(self):
        self.body, self.head, self.aux = nn.Dense(self.width), nn.Dense(3), nn.Dense(3)
        self.norm, self.dropout = nn.BatchNorm(), nn.Dropout(0.5)

    def features(self, x, train):
        x = nn.relu(self.norm(self.body(x), use_running_average=not train))
        return self.dropout(x, deterministic=not train)

    def __call__(self, x, train=False):
        x = self.features(x, train)
        aux = self.aux(x) if train or self.is_initializing() else None
        return (self.head(x), aux) if train else self.head(x)

    def score(self, latents, scale=1.0):
        return scale * self.aux(nn.relu(self.body(latents)))


def randomised(stacked):
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 + np.abs(rng.normal(size=leaf.shape)), leaf.dtype), stacked
    )


@pytest.mark.parametrize(
    "calls", [[TRAINING], [{"method": "score", "x": X[:2], "scale": 2.0}], [TRAINING, TRAINING]]
)
def test_a_head_that_another_call_uses_is_divided(calls):
    network = Auxiliary()
    stacked = randomised(dcjax.init(network, 4, jax.random.key(0), X, calls=calls))
    assert {path[1] for path, leaf in stacked.layout.leaves if leaf.head} == {"head", "aux"}
    report = dcjax.verify(network, stacked, X, calls=calls, tolerance=1e-5)
    layers = [row.layer for row in report.layers]
    assert "Auxiliary/head" in layers
    assert any("aux (call 2)" in layer for layer in layers)
    variables, subnet = dcjax.compose(stacked), dcjax.decompose(network, 4)
    scores = [subnet.apply(own, X, method="score") for own in stacked]
    assert_same(network.apply(variables, X, method="score"), np.mean(scores, axis=0))
    logits = [subnet.apply(own, X) for own in stacked]
    assert_same(network.apply(variables, X), np.mean(logits, axis=0))


def test_a_head_that_no_call_uses_is_refused():
    with UNUSED as error:
        dcjax.layout(Auxiliary(), 4, X)
    assert 'calls=[{"train": True}]' in str(error.value)
    with UNUSED:
        dcjax.init(Auxiliary(), 4, jax.random.key(0), X)
    with UNUSED:  # a method that uses neither head
        dcjax.layout(Auxiliary(), 4, X, calls=[{"method": lambda net, x: net.body(x)}])


def test_variables_that_only_a_further_call_has_are_initialised():
    class Late(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.relu(nn.Dense(self.width)(x))
            logits = nn.Dense(3, name="head")(x)
            return (logits, nn.Dense(3, name="aux")(x)) if train else logits

    for subnets in (1, 2):
        key = jax.random.key(0)
        stacked = dcjax.init(Late(), subnets, key, X, calls=[{"train": True}])
        alone = dcjax.decompose(Late(), subnets).init(jax.random.fold_in(key, 0), X, train=True)
        chex.assert_trees_all_close(stacked[0], alone, rtol=1e-6)
        first = dcjax.init(Late(), subnets, key, X)
        assert "aux" not in first.tree["params"]


def test_the_calls_must_agree_on_a_leaf():
    class Tied(nn.Module):
        width: int = 8

        def setup(self):
            self.table, self.head = nn.Embed(5, self.width), nn.Dense(3)

        def __call__(self, x):
            return self.head(nn.relu(self.table(x)))

        def attend(self, x):
            return self.table.attend(nn.relu(self.table(x)))

    tokens = jnp.zeros((2, 4), int)
    assert dcjax.layout(Tied(), 2, tokens).subnets == 2
    with pytest.raises(dcjax.NotSeparableError, match="kernel of its own"):
        dcjax.layout(Tied(), 2, tokens, calls=[{"method": "attend"}])


def test_variables_that_are_returned_hold_the_head_undivided():
    with pytest.raises(dcjax.NotSeparableError, match="it holds the head's 1/K"):
        dcjax.layout(Auxiliary(), 4, X, calls=[{"train": True, "mutable": True}])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("calls", [{"train": True}, [None], ["train"], 3, [{1: True}]])
def test_calls_are_dicts_of_arguments(calls):
    with pytest.raises(TypeError, match="calls must be a list of dicts"):
        dcjax.layout(Auxiliary(), 4, X, calls=calls)


def body_and_heads(params, x, train, cast=jnp.float32):
    params = jax.tree.map(lambda p: p.astype(cast), params)  # used by this much, all of them
    x = jax.nn.relu(x @ params["body"])
    return (x @ params["head"], x @ params["aux"]) if train else x @ params["head"]


def body_and_heads_params(width):
    shapes = {"body": (6, width), "head": (width, 3), "aux": (width, 3)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def layout_of(call, width=lambda w: body_and_heads_params(w)):
    return dcjax.layout_of_functions(call, call, (width(2), X), (width(8), X), 4)


@pytest.mark.parametrize("cast", [jnp.float32, jnp.bfloat16])
def test_a_leaf_that_is_only_cast_is_not_used(cast):
    with pytest.raises(dcjax.NotSeparableError, match=r"1\. aux \(leaf\): no result of the traced"):
        layout_of(lambda params, x: body_and_heads(params, x, train=False, cast=cast))
    layout = layout_of(lambda params, x: body_and_heads(params, x, train=True, cast=cast))
    assert {path[0] for path, leaf in layout.leaves if leaf.head} == {"head", "aux"}


@pytest.mark.parametrize(
    "change", [lambda p, x: p * x[0, 0], lambda p, x: p + jax.random.normal(jax.random.key(0))]
)
def test_a_leaf_that_is_scaled_by_the_input_is_not_used(change):
    """All leaves are changed alike; what they are for does not show."""

    def call(params, x):
        aux = change(params["aux"], x)
        return body_and_heads(params | {"aux": aux}, x, train=False)

    with pytest.raises(dcjax.NotSeparableError, match=r"1\. aux \(leaf\): no result of the traced"):
        layout_of(call)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_a_head_that_is_computed_and_not_returned_is_divided(wrap):
    def call(params, x):
        return wrap(body_and_heads, static_argnums=2)(params, x, True)[0]

    assert {path[0] for path, leaf in layout_of(call).leaves if leaf.head} == {"head", "aux"}


def test_leaves_that_cannot_be_a_head_may_be_unused():
    def params(width):
        more = {
            "count": jax.ShapeDtypeStruct((), jnp.int32),
            "seen": jax.ShapeDtypeStruct((width,), jnp.int32),
            "key": jax.eval_shape(lambda: jax.random.key(0)),
            "empty": jax.ShapeDtypeStruct((width, 0), jnp.float32),
            "temperature": jax.ShapeDtypeStruct((), jnp.float32),
        }
        return body_and_heads_params(width) | more

    def call(params, x):
        return body_and_heads({k: params[k] for k in ("body", "head", "aux")}, x, train=True)

    layout = layout_of(call, params)
    unused = {path[0] for path, leaf in layout.leaves if not leaf.used}
    assert unused == {"count", "seen", "key", "empty", "temperature"}


class NNXAuxiliary(nnx.Module):
    def __init__(self, width, rngs):
        self.body = nnx.Linear(6, width, rngs=rngs)
        self.head, self.aux = (nnx.Linear(width, 3, rngs=rngs) for _ in range(2))

    def __call__(self, x, train):
        x = nnx.relu(self.body(x))
        return (self.head(x), self.aux(x)) if train else self.head(x)


class EquinoxAuxiliary(eqx.Module):
    body: eqx.nn.Linear
    head: eqx.nn.Linear
    aux: eqx.nn.Linear

    def __init__(self, width, key):
        self.body = eqx.nn.Linear(6, width, key=key)
        self.head, self.aux = (eqx.nn.Linear(width, 3, key=key) for _ in range(2))

    def __call__(self, x, train):
        x = jax.nn.relu(jax.vmap(self.body)(x))
        both = jax.vmap(self.head)(x), jax.vmap(self.aux)(x)
        return both if train else both[0]


def nnx_auxiliary(width):
    graph, state = nnx.split(NNXAuxiliary(width, nnx.Rngs(0)))
    return state, lambda state, x, train: nnx.merge(graph, state)(x, train)


def equinox_auxiliary(width):
    params, static = eqx.partition(EquinoxAuxiliary(width, jax.random.key(0)), eqx.is_array)
    return params, lambda params, x, train: eqx.combine(params, static)(x, train)


def haiku_auxiliary(width):
    def network(x, train, both):
        x = jax.nn.relu(hk.Linear(width)(x))
        x = hk.BatchNorm(True, True, 0.9)(x, train)
        head, aux = hk.Linear(3), hk.Linear(3, name="aux")
        return (head(x), aux(x)) if train or both else head(x)

    transformed = hk.without_apply_rng(hk.transform_with_state(network))
    variables = transformed.init(jax.random.key(0), X, True, True)
    return variables, lambda variables, x, train: transformed.apply(*variables, x, train, False)[0]


@pytest.mark.parametrize("build", [nnx_auxiliary, equinox_auxiliary, haiku_auxiliary])
def test_unused_heads_of_other_libraries(build):
    (narrow, f), (wide, g) = build(2), build(8)

    def layout(*modes):
        return dcjax.layout_of_functions(
            lambda variables, x: [f(variables, x, train) for train in modes],
            lambda variables, x: [g(variables, x, train) for train in modes],
            (narrow, X), (wide, X), 4,
        )  # fmt: skip

    if build is not equinox_auxiliary:  # which computes both heads always
        with pytest.raises(
            dcjax.NotSeparableError, match=r"aux.* \(leaf\): no result of the traced"
        ):
            layout(False)
    found = layout(False, True)
    heads = [path for path, leaf in found.leaves if leaf.head]
    assert len(heads) == 2
    rng = np.random.default_rng(0)
    trees = [
        jax.tree.map(lambda a: (0.1 + rng.random(a.shape)).astype(a.dtype), narrow)
        for _ in range(4)
    ]
    composed = dcjax.compose(dcjax.stack(trees, like=found))
    composed = jax.tree.unflatten(jax.tree.structure(wide), jax.tree.leaves(composed))
    pairs = zip(*(f(tree, X, True) for tree in trees), strict=True)
    together = g(composed, X, True)
    for own, whole in zip(pairs, together, strict=True):
        assert_same(whole, np.mean(own, axis=0))
