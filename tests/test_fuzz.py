"""Bad input, drawn: a public call gives the right result, or dcjax's own error; never another.

A case is a valid call with one or two of its arguments mutated. What it returns is compared with
NumPy written from the definitions. What it raises is a built-in type (or a subclass of it) from a
`raise` statement of dcjax, or comes from the user's own code: networks and functions of this file.

Some hundreds of cases run with the other tests; the long form, which prints what came of them, is

    DCJAX_FUZZ_CASES=10000 python -m pytest tests/test_fuzz.py -n auto -rP
"""

import collections
import dataclasses
import dis
import functools
import math
import os
import pathlib
import traceback
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dcjax
from dcjax._checks import array_fault
from tests.test_bounds import reference

CASES = int(os.environ.get("DCJAX_FUZZ_CASES", "500"))
LIBRARY = pathlib.Path(dcjax.__file__).parent
F, N, CLASSES = 3, 2, 4  # features, samples, classes
BATCH = np.linspace(-1, 1, N * F, dtype=np.float32).reshape(N, F)
HEADS = {"mean": lambda subnets: np.full(subnets, 1 / subnets), "sum": np.ones}


@pytest.fixture(autouse=True, scope="module")
def whole_tracebacks():
    """JAX leaves its own frames out otherwise, and its errors would look like ours."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


# --- networks, right and wrong ----------------------------------------------------------------


class Tiny(nn.Module):
    """Every kind of leaf: split, block-diagonal, mixed head, mean, and a counter that is unused."""

    width: Any = 4

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(self.width, name="stem")(x)
        y = nn.Dense(self.width, name="body")(nn.relu(y))
        self.variable("counters", "calls", jnp.zeros, (), jnp.int32)
        return nn.Dense(CLASSES, name="head")(jnp.concatenate([x, y], -1))


class UserError(Exception):
    """What a user's code raises."""


class Raising(Tiny):
    def __call__(self, x):
        raise UserError


class Gives(Tiny):
    """A network whose result, or a variable, is no array."""

    thing: Any = None
    variable_too: bool = False

    def __call__(self, x):
        if self.variable_too:
            self.variable("odd", "thing", lambda: self.thing)
        return self.thing


class Normed(Tiny):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(nn.LayerNorm()(nn.Dense(self.width)(x)))


class Other(nn.Dense):
    """Of no width, and with other variables."""

    def __call__(self, x):
        return super().__call__(x)


class Narrow(Tiny):
    to: Any = None

    def narrow(self, subnets):
        return self.to


class NotCallable(Tiny):
    narrow = 3


@dataclasses.dataclass
class NoNetwork:
    width: int = 4


NETWORKS = [
    Tiny, nn.Dense, Other(3), object(), lambda x: x, NoNetwork(), NoNetwork,
    types.SimpleNamespace(width=4, init=None, apply=None),
    Raising(4), Gives(4), Gives(4, thing="text"), Gives(4, thing=object()), Gives(4, thing=[1.0]),
    Gives(4, thing="text", variable_too=True), Normed(4), Narrow(4), Narrow(4, to=Tiny(2)),
    Narrow(4, to=Tiny), Narrow(4, to="text"), NotCallable(4), Tiny(4).bind({}),
    *(Tiny(w) for w in (0, -4, 1, 5, 6, 12, 4.0, "4", None, True, (4,), [4, 4], np.int64(4))),
]  # fmt: skip


# --- valid values -----------------------------------------------------------------------------


@functools.cache
def layout_for(subnets):
    return dcjax.layout(Tiny(2 * subnets), subnets, BATCH)


def nested(leaves):
    tree: dict = {}
    for path, leaf in leaves:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def values(rng, path, shape):
    if path[-1] == "calls":
        return rng.integers(0, 9, shape).astype(np.int32)
    return np.asarray(rng.normal(size=shape), np.float32)


def stack_of(rng, subnets):
    layout = layout_for(subnets)
    leaves = ((p, values(rng, p, (subnets, *leaf.narrow_shape))) for p, leaf in layout.leaves)
    return dcjax.Stacked(nested(leaves), layout)


def whole_of(rng, subnets):
    layout = layout_for(subnets)
    return nested((p, values(rng, p, leaf.global_shape(subnets))) for p, leaf in layout.leaves)


def head_of(rng, subnets):
    """How a head merges: the mean, the sum, or weights."""
    draw = rng.integers(4)
    if draw < 2:
        return {}
    if draw == 2:
        return {"head": "sum"}
    weights = rng.uniform(0.1, 1, subnets)
    return {"weights": (weights / weights.sum()).astype(np.float32)}


# --- mutations --------------------------------------------------------------------------------

# Made anew for each case: some can be used only once.
JUNK: list[Callable[[], Any]] = [
    lambda: None, lambda: "kernel", lambda: b"kernel", lambda: 1.5, lambda: True, lambda: 3,
    lambda: -1, lambda: 0, lambda: 2**40, lambda: 2**70, lambda: math.nan, lambda: math.inf,
    lambda: 1j, object, lambda: object, dict, list, tuple, set, lambda: [None],
    lambda: {"params": None}, lambda: ..., lambda: range(2), lambda: (i for i in range(2)),
    lambda: lambda *_: None, lambda: np.array("a"), lambda: np.array(["a", "b"]),
    lambda: np.array([None, object()]), lambda: np.array(["2000-01-01"], "datetime64[D]"),
    lambda: np.zeros(2, [("a", "f4")]), lambda: np.float64(0.5), lambda: np.array(2.0),
    lambda: jnp.float32(1), lambda: jnp.zeros(2), lambda: jax.random.key(0),
    lambda: jax.random.split(jax.random.key(0)), lambda: jnp.zeros(3, jnp.uint32),
    lambda: jax.ShapeDtypeStruct((2,), jnp.float32), lambda: np.ma.masked_array([1.0], [True]),
    lambda: {1: 0.0, "1": 0.0}, lambda: [[1.0], [1.0, 2.0]], lambda: slice(2), lambda: 1.0,
    lambda: [0.5, 0.5], lambda: (1.0,), lambda: dcjax, lambda: optax.sgd(0.1), lambda: Tiny(4),
]  # fmt: skip
COUNTS: list[Any] = [
    1, 2, 3, 4, 5, 6, 0, -1, -2, True, False, 2.0, math.nan, "2", None, [2], (2,), (2, 2), (2, 0),
    (1.0, 2), "ab", (2, "b"), np.int64(2), np.int32(3), np.uint8(2), np.float64(2), np.bool_(True),
    np.array(2), np.array([2]), np.array(2.0), jnp.asarray(2), jnp.asarray(2.0), jnp.asarray([2]),
    1000, 10**12, 2**70, object(),
]  # fmt: skip
WORDS = ["mean", "sum", "max", "", "MEAN", "zeros", "width", "params", np.array(["mean", "sum"])]
DTYPES: list[Any] = [
    np.int32, np.int64, np.uint8, np.uint32, np.bool_, np.float16, ml_dtypes.bfloat16, np.float64,
    np.complex64, np.complex128, object, str, "datetime64[D]",
]  # fmt: skip
SHAPES: list[Callable[[np.ndarray], Any]] = [
    lambda a: a[0], lambda a: a[:-1], lambda a: a[1:], lambda a: a[:0], lambda a: a[None],
    lambda a: a[..., None], lambda a: a[..., :0], lambda a: a.T, lambda a: a.ravel(),
    lambda a: a.ravel()[:1].reshape(()), lambda a: np.concatenate([a, a[:1]]),
    lambda a: np.repeat(a, 2, -1), lambda a: a[::-1], lambda a: a.ravel()[0].item(),
    lambda a: a.copy("F"),
]  # fmt: skip
ODD = [
    math.nan,
    math.inf,
    -math.inf,
    0,
    -1,
    1,
    7,
    1e30,
    3e38,
    2**31,
    2**32,
    2**63 - 1,
    -(2**40),
    1e300,
]


def abstract(array):
    dtype = array.dtype if is_key(array) else jax.dtypes.canonicalize_dtype(array.dtype)
    return jax.ShapeDtypeStruct(array.shape, dtype)


def deleted(array):
    array = jnp.array(array)
    array.delete()
    return array


KINDS: list[Callable[[np.ndarray], Any]] = [
    jnp.asarray, np.ndarray.tolist, abstract, deleted,
    lambda a: jax.random.split(jax.random.key(0), a.shape), lambda a: [*np.ravel(a)],
    lambda a: (a,), lambda a: {"a": a},
]  # fmt: skip


def of_array(draw, array):
    """An array of another dtype, shape, kind, or with odd entries."""
    if array.dtype.kind not in "biuf":
        return None
    how = draw(st.sampled_from(["dtype", "dtype", "shape", "shape", "kind", "entry", "entry"]))
    if how == "dtype":
        dtype = draw(st.sampled_from(DTYPES))
        return array.astype(np.int64 if isinstance(dtype, str) else array.dtype).astype(dtype)
    if how == "entry":
        value, wide = draw(st.sampled_from(ODD)), draw(st.booleans())
        dtype = (np.float64 if array.dtype.kind == "f" else np.int64) if wide else array.dtype
        if not array.size or array.dtype.kind not in "iuf":
            return array
        odd = array.astype(dtype)
        odd.flat[draw(st.integers(0, array.size - 1))] = np.array(value).astype(dtype)
        return odd
    change = draw(st.sampled_from(SHAPES if how == "shape" else KINDS))
    return change(array) if (array.ndim and array.size) or how == "kind" else array[None]


@dataclasses.dataclass
class Trees:
    """An iterable without a length."""

    items: Any

    def __iter__(self):
        return iter(self.items)


WRAPS: list[Callable[[Any], Any]] = [
    flax.core.freeze, lambda t: [*t.values()], lambda t: (t,), lambda t: {"params": t},
    lambda t: {**t, "extra": np.zeros(2, np.float32)}, lambda t: {**t, 1: np.zeros(2)},
    lambda t: dict(list(t.items())[1:]), lambda t: {k.upper(): v for k, v in t.items()},
    lambda t: dict(enumerate(t.values())), lambda t: types.MappingProxyType(t),
    lambda t: {**t, "none": None}, lambda t: {**t, "more": {}}, lambda t: t.items(),
    lambda t: dict(reversed(t.items())),
]  # fmt: skip


def of_dict(draw, tree):
    """A tree with another container, or a mutation below one of its keys."""
    if not tree or draw(st.integers(0, 2)) == 0:
        return draw(st.sampled_from(WRAPS))(tree)
    key = draw(st.sampled_from(sorted(tree, key=str)))
    return {**tree, key: mutated(draw, tree[key])}


def of_list(draw, items):
    how = draw(st.sampled_from(["one", "one", "one", "fewer", "more", "tuple", "lazy", "dict"]))
    if how == "one" and items:
        i = draw(st.integers(0, len(items) - 1))
        return [*items[:i], mutated(draw, items[i]), *items[i + 1 :]]
    return {
        "fewer": items[1:], "more": [*items, *items[:1]], "tuple": tuple(items),
        "lazy": Trees(items), "dict": dict(enumerate(items)),
    }.get(how, [])  # fmt: skip


def of_layout(draw, layout):
    return draw(
        st.sampled_from([
            *(layout_for(k) for k in (1, 2, 3)), layout_for(2)["params"], dcjax.Layout, "layout",
            dcjax.Layout(layout.subnets, ()), layout.leaves, dcjax.Stacked({}, layout),
            dcjax.Stacked(None, None), dcjax.Stacked({}, "layout"), dcjax.LeafLayout(()),
        ])
    )  # fmt: skip


def of_stacked(draw, stacked):
    how = draw(st.sampled_from(["tree", "tree", "tree", "layout", "plain", "part", "twice", "in"]))
    tree, layout = stacked.tree, stacked.layout
    if how == "tree" or not (isinstance(tree, dict) and isinstance(layout, dcjax.Layout)):
        return dcjax.Stacked(mutated(draw, tree), layout)
    return {
        "layout": lambda: dcjax.Stacked(tree, of_layout(draw, layout)),
        "plain": lambda: tree,
        "part": lambda: dcjax.Stacked(next(iter(tree.values()), {}), layout),
        "twice": lambda: dcjax.Stacked(stacked, layout),
        "in": lambda: {"a": [stacked], "b": (stacked,)},
    }[how]()


def mutated(draw, value):
    """The value with something changed, or something else altogether."""
    choices = {
        np.ndarray: of_array, dict: of_dict, list: of_list, dcjax.Stacked: of_stacked,
        dcjax.Layout: of_layout,
    }  # fmt: skip
    change = choices.get(type(value))
    if change and draw(st.integers(0, 5)):
        return change(draw, value)
    if isinstance(value, nn.Module) and draw(st.integers(0, 5)):
        return draw(st.sampled_from(NETWORKS))
    if isinstance(value, int) and draw(st.integers(0, 5)):
        return draw(st.sampled_from(COUNTS))
    if isinstance(value, str) and draw(st.booleans()):
        return draw(st.sampled_from(WORDS))
    return draw(st.sampled_from(JUNK))()


# --- what is right ----------------------------------------------------------------------------


def is_key(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def canonical(leaf):
    """An array as JAX holds it, in NumPy: without 64 bits."""
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(jax.tree_util.keystr((k,), simple=True) for k in path): v for path, v in leaves}


def assert_leaf(got, expected, path):
    """The expected entries, to the rounding of the dtype; NaN where NaN is expected."""
    if is_key(got):
        got, expected = jax.random.key_data(got), jax.random.key_data(expected)
    expected = np.asarray(expected)
    got = np.asarray(got)
    assert got.shape == expected.shape, path
    wide = np.complex128 if got.dtype.kind == "c" else np.float64
    rough = 8 * float(jnp.finfo(got.dtype).eps) if jnp.issubdtype(got.dtype, jnp.inexact) else 0
    with np.errstate(all="ignore"):
        target = expected.astype(wide)
        limit = float(jnp.finfo(got.dtype).max) if rough else math.inf
        if got.dtype.kind != "c":
            target = np.where(np.abs(target) > limit, np.sign(target) * np.inf, target)
    np.testing.assert_allclose(got.astype(wide), target, rtol=rough, atol=rough, err_msg=str(path))


def places_of(rule, subnets):
    return [order.indices(subnets) for order in rule.axes]


def fixed_of(rule, subnets):
    """The entries of a sub-network's leaf that all sub-networks have in the same place."""
    return [np.flatnonzero((p == p[0]).all(axis=0)) for p in places_of(rule, subnets)]


def shares_for(args, subnets):
    weights = args.get("weights")
    if weights is not None:
        return np.asarray(weights, np.float64)
    return HEADS[args.get("head", "mean")](subnets)


def global_leaf(parts, rule, shares, subnets, old):
    """One leaf by the layout's definition, entry by entry."""
    parts = canonical(parts)
    real = jnp.issubdtype(parts.dtype, jnp.inexact)
    wide = (np.complex128 if parts.dtype.kind == "c" else np.float64) if real else parts.dtype
    assert real or not rule.used or not rule.head, "integers cannot be divided"
    parts = parts.astype(wide)
    out = np.zeros(rule.global_shape(subnets), wide) if old is None else np.array(old, wide)
    shares = shares if rule.used else np.full(subnets, 1 / subnets)
    places, fixed = places_of(rule, subnets), fixed_of(rule, subnets)
    with np.errstate(all="ignore"):
        for k in range(subnets):
            block = np.ix_(*(p[k] for p in places))
            out[block] = parts[k] * shares[k] if rule.head else parts[k]
        if all(f.size for f in fixed) and subnets > 1:
            assert real or not rule.used, "integers have no mean"
            common = parts[(slice(None), *np.ix_(*fixed))]
            merged = np.tensordot(shares, common, 1) if real else common[0]
            out[np.ix_(*(p[0][f] for p, f in zip(places, fixed, strict=True)))] = merged
    return out


def nodes_of(args):
    params = args["params"]
    if args.get("like") is not None:
        params = dcjax.Stacked(params, getattr(args["like"], "layout", args["like"]))
    is_node = lambda node: isinstance(node, dcjax.Stacked)  # noqa: E731
    return jax.tree_util.tree_flatten_with_path(params, is_leaf=is_node)[0]


def right_compose(args, result):
    expected, structures = {}, []
    into = None if args.get("into") is None else by_path(args["into"])
    for prefix, node in nodes_of(args):
        subnets = node.layout.subnets
        at = tuple(jax.tree_util.keystr((k,), simple=True) for k in prefix)
        leaves = by_path(node.tree)
        assert leaves.keys() == node.layout.by_path.keys()
        for path, leaf in leaves.items():
            rule = node.layout.by_path[path]
            old = None if into is None else into[at + path]
            if callable(args.get("off_diagonal")) and rule.has_off_diagonal:
                old = np.full(rule.global_shape(subnets), 2.0 * args.get("off_diagonal_scale", 1.0))
            if is_key(leaf):
                expected[at + path] = leaf.dtype, None
                continue
            parts = canonical(leaf)
            new = global_leaf(parts, rule, shares_for(args, subnets), subnets, old)
            expected[at + path] = parts.dtype, new
        structures.append(jax.tree.structure(node.tree))
    got = by_path(result)
    assert got.keys() == expected.keys()
    for path, (dtype, leaf) in expected.items():
        assert got[path].dtype == dtype, path
        if leaf is not None:
            assert_leaf(got[path], leaf, path)
    if len(structures) == 1 and args.get("like") is not None:
        assert jax.tree.structure(result) == structures[0]


def right_extract(args, result):
    layout = getattr(args["like"], "layout", args["like"])
    subnets, leaves, got = layout.subnets, by_path(args["variables"]), by_path(result.tree)
    shares = shares_for(args, subnets)
    assert result.layout == layout
    assert leaves.keys() == got.keys() == layout.by_path.keys()
    for path, rule in layout.leaves:
        if is_key(leaves[path]):
            assert not rule.used or subnets == 1
            continue
        leaf = canonical(leaves[path])
        assert leaf.shape == rule.global_shape(subnets)
        assert got[path].dtype == leaf.dtype
        own = shares if rule.used else np.full(subnets, 1 / subnets)
        real = jnp.issubdtype(leaf.dtype, jnp.inexact)
        assert real or subnets == 1 or not (rule.used and (rule.head or rule.is_mean))
        leaf = leaf.astype(np.complex128 if leaf.dtype.kind == "c" else np.float64)
        places, fixed = places_of(rule, subnets), fixed_of(rule, subnets)
        for k in range(subnets):
            with np.errstate(all="ignore"):
                part = leaf[np.ix_(*(p[k] for p in places))]
                part = np.array(part / own[k] if rule.head else part)
                if real and all(f.size for f in fixed):
                    common = np.ix_(*(p[0][f] for p, f in zip(places, fixed, strict=True)))
                    part[np.ix_(*fixed)] = leaf[common] / own.sum()
            assert_leaf(got[path][k], part, path)


def right_stack(args, result):
    trees = [by_path(tree) for tree in args["variables"]]
    assert result.layout == getattr(args["like"], "layout", args["like"])
    assert len(trees) == result.layout.subnets
    got = by_path(result.tree)
    for tree in trees:
        assert tree.keys() == got.keys() == result.layout.by_path.keys()
    for path, leaf in got.items():
        if is_key(leaf):
            continue
        parts = [canonical(tree[path]) for tree in trees]
        assert {leaf.dtype} == {part.dtype for part in parts}
        assert_leaf(leaf, np.stack(parts), path)


def right_unstack(args, result):
    stacked = args["stacked"]
    assert len(result) == stacked.layout.subnets
    leaves = by_path(stacked.tree)
    for k, tree in enumerate(result):
        got = by_path(tree)
        assert got.keys() == leaves.keys()
        for path, leaf in leaves.items():
            assert len(leaf) == len(result)
            assert_leaf(got[path], leaf[k], path)


def right_bounds(args, found, mask=None):
    logits, labels = np.asarray(args["logits"]), np.asarray(args["labels"])
    assert logits.ndim == 3
    assert logits.dtype.kind != "c"
    keep = np.ones(len(labels), bool) if mask is None else mask
    with np.errstate(over="ignore"):
        logits = logits.astype(np.float32).astype(np.float64)[:, keep]
    labels = labels[keep]
    assert labels.dtype.kind in "iu"
    assert ((labels >= 0) & (labels < logits.shape[-1])).all()
    weights = args.get("weights")
    weights = np.full(len(logits), 1 / len(logits)) if weights is None else np.asarray(weights)
    assert math.isclose(weights.astype(float).sum(), 1, abs_tol=1e-3)
    assert found.accuracy_lower <= found.accuracy <= found.accuracy_upper
    with np.errstate(all="ignore"):
        if np.abs(logits).max() < 1e35:
            true = reference(logits, labels.astype(int), weights.astype(float))
            np.testing.assert_allclose(found.cost, true.cost, rtol=1e-4, atol=1e-3)
            assert found.cost_lower <= true.cost <= found.cost_upper
            assert true.accuracy_lower <= true.accuracy <= true.accuracy_upper
            assert found.accuracy_lower <= true.accuracy + 1e-6
            assert true.accuracy <= found.accuracy_upper + 1e-6
        else:
            costs = np.array(found[:3])
            assert not np.isfinite(costs).all() or costs[2] <= costs[0] <= costs[1]


def right_update(args, sums):
    mask = None if args.get("mask") is None else np.asarray(args["mask"])
    count = len(args["labels"]) if mask is None else mask.sum()
    assert int(sums.samples) - int(args["sums"].samples) == count
    before = [float(x) for x in args["sums"]]
    after = [float(x) for x in sums]
    if not count:
        assert before == after
    elif not any(before):
        right_bounds(args, dcjax.bounds_finish(sums), mask)


def right_finish(args, found):
    sums = {name: np.float32(x) for name, x in args["sums"]._asdict().items()}
    assert sums["samples"] > 0
    costs = [sums[name] + sums[f"{name}_rest"] for name in ("cost", "cost_upper", "cost_lower")]
    totals = [*costs, sums["right"], sums["right_lower"], sums["right_upper"]]
    np.testing.assert_allclose(found, [t / sums["samples"] for t in totals], rtol=1e-6)


def right_layout(args, layout):
    network, subnets = args["network"], int(args["subnets"])
    assert layout.subnets == subnets
    x = abstract(args["x"])
    wide = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), x)
    wide = {path: leaf.shape for path, leaf in by_path(wide).items()}
    assert {path: leaf.global_shape(subnets) for path, leaf in layout.leaves} == wide
    assert subnets == 1 or network.width % subnets == 0 or isinstance(network, Narrow)
    if subnets > 1:
        assert not all(leaf.is_mean for _, leaf in layout.leaves)


def right_functions(args, layout):
    narrow, wide = (by_path(args[name][0]) for name in ("narrow_args", "wide_args"))
    subnets = int(args["subnets"])
    assert layout.subnets == subnets
    if subnets > 1:
        shapes = {path: leaf.narrow_shape for path, leaf in layout.leaves}
        assert shapes == {path: np.shape(leaf) for path, leaf in narrow.items()}
    shapes = {path: leaf.global_shape(subnets) for path, leaf in layout.leaves}
    assert shapes == {path: np.shape(leaf) for path, leaf in wide.items()}


def right_init(args, stacked):
    subnets = int(args["subnets"])
    right_layout({**args, "x": jnp.asarray(args["x"])}, stacked.layout)
    for path, leaf in by_path(stacked.tree).items():
        assert leaf.shape == (subnets, *stacked.layout.by_path[path].narrow_shape)
        assert np.isfinite(leaf).all()
        if path[-1] == "kernel" and leaf[0].size > 4:
            assert len({float(np.sum(part)) for part in leaf}) == subnets


def forward(variables, x):
    """The tiny network, in NumPy."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(variables["params"]))
    y = np.maximum(x @ p["stem"]["kernel"] + p["stem"]["bias"], 0)
    y = y @ p["body"]["kernel"] + p["body"]["bias"]
    y = np.concatenate([x, y], -1)
    return y @ p["head"]["kernel"] + p["head"]["bias"]


def parts_of(stacked):
    return [
        jax.tree.map(lambda leaf, k=k: leaf[k], stacked.tree) for k in range(stacked.layout.subnets)
    ]


def right_apply(args, logits):
    for leaf in jax.tree.leaves(args["stacked"].tree):
        assert len(leaf) == args["stacked"].layout.subnets
    parts, xs = parts_of(args["stacked"]), np.asarray(args["xs"])
    assert len(logits) == len(parts) == len(xs)
    assert by_path(args["stacked"].tree).keys() >= args["stacked"].layout.by_path.keys()
    if np.iscomplexobj(logits):
        return
    with np.errstate(all="ignore"):
        expected = [forward(part, x) for part, x in zip(parts, xs, strict=True)]
    # NumPy and XLA differ in the order of sums, which matters to huge entries and infinities.
    if np.isfinite(expected).all() and np.abs(expected).max(initial=0) < 1e3:
        np.testing.assert_allclose(np.asarray(logits, float), expected, rtol=0.1, atol=0.1)


def right_decompose(args, subnet):
    network, subnets = args["network"], int(args["subnets"])
    assert subnets >= 1
    assert type(subnet) is type(network) or isinstance(network, Narrow)
    if subnets > 1 and not isinstance(network, Narrow):
        assert jax.tree.map(lambda w: subnets * w, subnet.width) == network.width
        assert network.width != 0


def right_verify(args, report):
    parts, x = parts_of(args["stacked"]), np.asarray(args["x"])
    composed = dcjax.compose(
        args["stacked"], **{k: args[k] for k in ("head", "weights") if k in args}
    )
    shares = shares_for(args, len(parts))
    limit = 1e-4 if args.get("tolerance") is None else float(args["tolerance"])
    assert report.error <= limit
    with np.errstate(all="ignore"):
        expected = np.tensordot(shares, [forward(part, x) for part in parts], 1)
        got = forward(composed, x)
    if limit < 1e-2 and np.isrealobj(x) and np.abs(expected).max(initial=0) < 1e3:
        np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)


def right_state(args, state):
    """Traces and first moments: the sub-networks', times their weights in the body."""
    params, optimizer = args["params"], args["optimizer"]
    new = jax.eval_shape(optimizer.init, jax.eval_shape(dcjax.compose, params))
    assert jax.tree.structure(state) == jax.tree.structure(new)
    plain = jax.tree.map(
        lambda n: n.tree if isinstance(n, dcjax.Stacked) else n, args["opt_state"],
        is_leaf=lambda n: isinstance(n, dcjax.Stacked),
    )  # fmt: skip
    old, got = by_path(plain), by_path(state)
    for path, leaf in by_path(new).items():
        assert got[path].shape == leaf.shape
        assert got[path].dtype == leaf.dtype
        kind = next((name for name in ("trace", "mu", "nu") if name in path), None)
        if kind is None:
            np.testing.assert_array_equal(got[path], np.ravel(old[path])[0])
            continue
        rule = params.layout.by_path[path[path.index(kind) + 1 :]]
        subnets = params.layout.subnets
        shares = shares_for(args, subnets)
        factors = shares ** (2 if kind == "nu" else 1)
        parts = np.asarray(old[path], np.float64)
        whole = np.asarray(got[path], np.float64)
        if rule.is_mean:
            assert_leaf(got[path], np.tensordot(shares, parts, 1).astype(np.float32), path)
        for k in range(subnets if not rule.is_mean else 0):
            block = whole[np.ix_(*(p[k] for p in places_of(rule, subnets)))]
            expected = parts[k] * (1 if rule.head else factors[k])
            split = ~np.isin(np.arange(block.shape[0]), fixed_of(rule, subnets)[0])
            np.testing.assert_allclose(block[split], expected[split], rtol=1e-5, atol=1e-30)


def right_samples(args, way):
    x = args["x"] if is_key(args["x"]) else canonical(args["x"])
    split, join = way.split(args["x"]), way.join(args["x"])
    assert len(split) == way.subnets
    assert type(way.subnets) is int
    assert split.shape[1] == len(x)
    if is_key(x):
        return
    joined = x if way.name == "replicate" else np.concatenate(list(split), -1)
    np.testing.assert_array_equal(canonical(join), joined)
    if way.name == "phases" or (way.name == "tiles" and not args.get("overlap")):
        assert np.asarray(split).size == x.size
        np.testing.assert_array_equal(np.sort(np.ravel(split)), np.sort(np.ravel(x)))


# --- the calls --------------------------------------------------------------------------------


class Fuzzed(NamedTuple):
    """A public function: a valid call, what is right, and its part of all cases."""

    call: Callable[..., Any]
    valid: Callable[[int, np.random.Generator], dict[str, Any]]
    right: Callable[[dict[str, Any], Any], None]
    part: float = 1.0


def valid_compose(subnets, rng):
    stacked, how = stack_of(rng, subnets), rng.integers(6)
    args = {"params": stacked, **head_of(rng, subnets)}
    if how == 1:
        return {**args, "params": stacked.tree, "like": stacked.layout}
    if how == 2:
        return {**args, "params": stacked.tree, "like": stacked, "into": whole_of(rng, subnets)}
    if how == 3:
        return {**args, "into": whole_of(rng, subnets)}
    if how == 4:
        return {**args, "params": {"a": stacked["params"]},
                "into": {"a": whole_of(rng, subnets)["params"]}}  # fmt: skip
    if how == 5:
        fill = {"off_diagonal_scale": 0.5, "key": jax.random.key(0)}
        return {**args, "off_diagonal": jax.nn.initializers.constant(2.0), **fill}
    return args


def fills():
    """What is given for an initialiser."""
    ones = jax.nn.initializers.constant(2.0)

    def raising(*_):
        raise UserError

    return [ones, jax.nn.initializers.he_normal, "zeros", "ones", 1.0, raising,
            lambda *_: None, lambda *_: 2.0, lambda *_: "text", lambda k, s, d: np.full(s, "text"),
            lambda k, s, d: np.full((*s, 1), 2.0), lambda k, s, d: np.full(s, 2.0 + 1j),
            lambda k, s, d: np.full(s, 2), lambda k, s, d: np.full(s, 2.0, object),
            lambda k, s, d: np.full(s, 2.0)]  # fmt: skip


def valid_functions(subnets, rng):
    def tree(width):
        shapes = {"hidden": (F, width), "head": (width, CLASSES), "bias": (CLASSES,)}
        return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}

    def network(params, x):
        hidden = jnp.maximum(x @ params["hidden"], 0)
        return hidden @ params["head"] + params["bias"]

    return {"narrow": network, "wide": network, "narrow_args": [tree(2), BATCH],
            "wide_args": [tree(2 * subnets), BATCH], "subnets": subnets}  # fmt: skip


def valid_bounds(subnets, rng):
    logits = rng.normal(size=(subnets, N, CLASSES)).astype(np.float32)
    weights = {k: v for k, v in head_of(rng, subnets).items() if k == "weights"}
    return {"logits": logits, "labels": rng.integers(0, CLASSES, N).astype(np.int32), **weights}


def valid_update(subnets, rng):
    args = {"sums": dcjax.BoundsSums(), **valid_bounds(subnets, rng)}
    return {**args, "mask": rng.integers(0, 2, N) > 0} if rng.integers(2) else args


def valid_finish(subnets, rng):
    logits = valid_bounds(subnets, rng)
    return {"sums": dcjax.bounds_update(dcjax.BoundsSums(), **logits)}


def valid_network(subnets, rng):
    return {"network": Tiny(4 * subnets), "subnets": subnets, "x": BATCH}


def valid_fields(subnets, rng):
    return {"network": Tiny(4 * subnets), "subnets": subnets, "fields": ["width"]}


def valid_apply(subnets, rng):
    xs = rng.normal(size=(subnets, N, F)).astype(np.float32)
    return {"subnet": Tiny(2), "stacked": stack_of(rng, subnets), "xs": xs}


def valid_verify(subnets, rng):
    return {"network": Tiny(2 * subnets), "stacked": stack_of(rng, subnets), "x": BATCH,
            "tolerance": 1e-3, **head_of(rng, subnets)}  # fmt: skip


OPTIMIZERS = [optax.trace(0.9), optax.adam(0.1)]


def valid_state(subnets, rng):
    params, optimizer = stack_of(rng, subnets)["params"], OPTIMIZERS[rng.integers(2)]
    state = jax.tree.map(
        lambda leaf: np.asarray(rng.integers(1, 9, leaf.shape), leaf.dtype),
        jax.eval_shape(optimizer.init, params),
    )
    weights = {k: v for k, v in head_of(rng, subnets).items() if k == "weights"}
    return {"optimizer": optimizer, "opt_state": state, "params": params, **weights}


def valid_samples(subnets, rng):
    name = dcjax.samples.NAMES[rng.integers(len(dcjax.samples.NAMES))]
    args = {"name": name, "subnets": {"bands": 4, "channels": 3}.get(name, subnets)}
    more = {"tiles": {"overlap": 0}, "bands": {"deviations": [1.0, 2.0, 1.0, 1.0]}}
    x = rng.normal(size=(N, 6, 6, 3)).astype(np.float32)
    return {**args, **(more.get(name, {}) if rng.integers(2) else {}), "x": x}


def call_samples(name, subnets, x, **more):
    """A way, and both of its functions."""
    known = more and isinstance(name, str) and name in dcjax.samples.NAMES
    make = getattr(dcjax.samples, name) if known else functools.partial(dcjax.samples.make, name)
    more = more if known else {}
    way = make(subnets, **more)
    way.split(x), way.join(x)
    return way


FUZZED = {
    "compose": Fuzzed(dcjax.compose, valid_compose, right_compose, 2),
    "extract": Fuzzed(
        dcjax.extract,
        lambda k, rng: {
            "variables": whole_of(rng, k), "like": layout_for(k), **head_of(rng, k)
        },
        right_extract,
    ),
    "stack": Fuzzed(
        dcjax.stack,
        lambda k, rng: {"variables": [*stack_of(rng, k)], "like": layout_for(k)},
        right_stack,
    ),
    "unstack": Fuzzed(
        dcjax.unstack, lambda k, rng: {"stacked": stack_of(rng, k)}, right_unstack, 0.5
    ),
    "bounds": Fuzzed(dcjax.bounds, valid_bounds, right_bounds),
    "bounds_update": Fuzzed(dcjax.bounds_update, valid_update, right_update),
    "bounds_finish": Fuzzed(dcjax.bounds_finish, valid_finish, right_finish, 0.5),
    "layout": Fuzzed(dcjax.layout, valid_network, right_layout),
    "layout_of_functions": Fuzzed(dcjax.layout_of_functions, valid_functions, right_functions),
    "init": Fuzzed(
        dcjax.init,
        lambda k, rng: {**valid_network(k, rng), "key": jax.random.key(0)},
        right_init,
        0.15,
    ),
    "apply": Fuzzed(dcjax.apply, valid_apply, right_apply),
    "decompose": Fuzzed(dcjax.decompose, valid_fields, right_decompose),
    "verify": Fuzzed(dcjax.verify, valid_verify, right_verify, 0.3),
    "compose_opt_state": Fuzzed(dcjax.compose_opt_state, valid_state, right_state, 0.3),
    "samples": Fuzzed(call_samples, valid_samples, right_samples),
}  # fmt: skip


@st.composite
def cases(draw, fuzzed):
    """A call's arguments: those of a valid one, none to two of them mutated."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    args = fuzzed.valid(draw(st.integers(1, 3)), rng)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 1, 1, 2]))):
        name = draw(st.sampled_from(sorted(args)))
        if name == "off_diagonal" and draw(st.booleans()):
            args[name] = draw(st.sampled_from(fills()))
            continue
        with np.errstate(all="ignore"):
            args[name] = (mutated_sums if name == "sums" else mutated)(draw, args[name])
    return args


def mutated_sums(draw, sums):
    if not isinstance(sums, dcjax.BoundsSums) or draw(st.booleans()):
        return draw(st.sampled_from(JUNK))()
    field = draw(st.sampled_from(sums._fields))
    value = getattr(sums, field)
    if array_fault(value) or is_key(value):  # mutated before
        return None
    return sums._replace(**{field: mutated(draw, np.asarray(value))})


def last_frame(error):
    at = error.__traceback__
    while at.tb_next:
        at = at.tb_next
    return at


def assert_own(error):
    """The raise statement is dcjax's, and so are the words; or the user's code is to blame."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [frame.f_code.co_filename for frame in frames]
    entered = [i for i, file in enumerate(files) if LIBRARY in pathlib.Path(file).parents]
    if entered and __file__ in files[entered[0] :]:
        return "the user's"
    at = last_frame(error)
    assert LIBRARY in pathlib.Path(files[-1]).parents, "raised elsewhere"
    operation = dis.opname[frames[-1].f_code.co_code[at.tb_lasti]]
    assert operation == "RAISE_VARARGS", "a bare error, no raise statement"
    assert isinstance(error, (ValueError, TypeError, KeyError, IndexError))
    assert len(str(error)) > 20
    return type(error).__name__


@pytest.mark.parametrize("name", FUZZED)
def test_bad_input_gives_the_right_result_or_our_own_error(name):
    fuzzed, outcomes = FUZZED[name], collections.Counter()
    count = math.ceil(CASES * fuzzed.part / sum(f.part for f in FUZZED.values()))

    @settings(
        deadline=None, max_examples=count, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(cases(fuzzed))
    def check(args):
        try:
            result = fuzzed.call(**args)
        except Exception as error:
            outcomes[assert_own(error)] += 1
        else:
            fuzzed.right(args, result)
            outcomes["right"] += 1

    check()
    print(f"{name}: {outcomes.total()} cases, {dict(outcomes)}")
