"""The correct results, in NumPy, from the definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import dcjax
from tests.fuzzing.values import Narrow, abstract, is_key
from tests.test_bounds import reference


def canonical(leaf):
    """Return an array with the dtype that JAX gives it (32 bits for 64)."""
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(jax.tree_util.keystr((k,), simple=True) for k in path): v for path, v in leaves}


def assert_leaf(got, expected, path):
    """Compare the entries, to the rounding of the dtype; NaN equals NaN."""
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
    """Return the entries of a sub-network's leaf that all sub-networks have in the same place."""
    return [np.flatnonzero((p == p[0]).all(axis=0)) for p in places_of(rule, subnets)]


def head_weights_for(args, subnets):
    weights = args.get("weights")
    return np.full(subnets, 1 / subnets) if weights is None else np.asarray(weights, np.float64)


def global_leaf(parts, rule, head_weights, subnets, old):
    """Compose one leaf by the layout's definition, entry by entry."""
    parts = canonical(parts)
    real = jnp.issubdtype(parts.dtype, jnp.inexact)
    wide = (np.complex128 if parts.dtype.kind == "c" else np.float64) if real else parts.dtype
    assert real or not rule.used or not rule.head, "integers cannot be divided"
    parts = parts.astype(wide)
    out = np.zeros(rule.global_shape(subnets), wide) if old is None else np.array(old, wide)
    head_weights = head_weights if rule.used else np.full(subnets, 1 / subnets)
    places, fixed = places_of(rule, subnets), fixed_of(rule, subnets)
    with np.errstate(all="ignore"):
        for k in range(subnets):
            block = np.ix_(*(p[k] for p in places))
            out[block] = parts[k] * head_weights[k] if rule.head else parts[k]
        if all(f.size for f in fixed) and subnets > 1:
            assert real or not rule.used, "integers have no mean"
            common = parts[(slice(None), *np.ix_(*fixed))]
            merged = np.tensordot(head_weights, common, 1) if real else common[0]
            out[np.ix_(*(p[0][f] for p, f in zip(places, fixed, strict=True)))] = merged
    return out


def nodes_of(args):
    params = args["params"]
    if args.get("like") is not None:
        params = dcjax.Stacked(params, getattr(args["like"], "layout", args["like"]))
    is_node = lambda node: isinstance(node, dcjax.Stacked)  # noqa: E731
    return jax.tree_util.tree_flatten_with_path(params, is_leaf=is_node)[0]


def compose(args, result):
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
            if is_key(leaf):
                expected[at + path] = leaf.dtype, None
                continue
            parts = canonical(leaf)
            new = global_leaf(parts, rule, head_weights_for(args, subnets), subnets, old)
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


def extract(args, result):
    layout = getattr(args["like"], "layout", args["like"])
    subnets, leaves, got = layout.subnets, by_path(args["variables"]), by_path(result.tree)
    head_weights = head_weights_for(args, subnets)
    assert result.layout == layout
    assert leaves.keys() == got.keys() == layout.by_path.keys()
    for path, rule in layout.leaves:
        if is_key(leaves[path]):
            assert not rule.used or subnets == 1
            continue
        leaf = canonical(leaves[path])
        assert leaf.shape == rule.global_shape(subnets)
        assert got[path].dtype == leaf.dtype
        own = head_weights if rule.used else np.full(subnets, 1 / subnets)
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


def stack(args, result):
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


def unstack(args, result):
    stacked = args["stacked"]
    assert len(result) == stacked.layout.subnets
    leaves = by_path(stacked.tree)
    for k, tree in enumerate(result):
        got = by_path(tree)
        assert got.keys() == leaves.keys()
        for path, leaf in leaves.items():
            assert len(leaf) == len(result)
            assert_leaf(got[path], leaf[k], path)


def bounds(args, found, mask=None):
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


def update(args, sums):
    mask = None if args.get("mask") is None else np.asarray(args["mask"])
    count = len(args["labels"]) if mask is None else mask.sum()
    assert int(sums.samples) - int(args["sums"].samples) == count
    before = [float(jnp.asarray(x)) for x in args["sums"]]  # JAX has 32 bits
    after = [float(x) for x in sums]
    if not count:
        np.testing.assert_array_equal(before, after)  # a NaN stays one
    elif not any(before):
        bounds(args, dcjax.bounds_finish(sums), mask)


def finish(args, found):
    sums = {name: np.float32(x) for name, x in args["sums"]._asdict().items()}
    assert sums["samples"] > 0
    if not all(0 <= sums[name] <= sums["samples"] for name in sums if "right" in name):
        return  # no batches have these sums
    costs = [sums[name] + sums[f"{name}_rest"] for name in ("cost", "cost_upper", "cost_lower")]
    totals = [*costs, sums["right"], sums["right_lower"], sums["right_upper"]]
    np.testing.assert_allclose(found, [t / sums["samples"] for t in totals], rtol=1e-6)


def layout(args, layout):
    network, subnets = args["network"], int(args["subnets"])
    assert layout.subnets == subnets
    x = abstract(args["x"])
    wide = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), x)
    wide = {path: leaf.shape for path, leaf in by_path(wide).items()}
    assert {path: leaf.global_shape(subnets) for path, leaf in layout.leaves} == wide
    assert subnets == 1 or network.width % subnets == 0 or isinstance(network, Narrow)
    if subnets > 1:
        assert not all(leaf.is_mean for _, leaf in layout.leaves)


def functions(args, layout):
    narrow, wide = (by_path(args[name][0]) for name in ("narrow_args", "wide_args"))
    subnets = int(args["subnets"])
    assert layout.subnets == subnets
    if subnets > 1:
        shapes = {path: leaf.narrow_shape for path, leaf in layout.leaves}
        assert shapes == {path: np.shape(leaf) for path, leaf in narrow.items()}
    shapes = {path: leaf.global_shape(subnets) for path, leaf in layout.leaves}
    assert shapes == {path: np.shape(leaf) for path, leaf in wide.items()}


def modules(args, layout):
    subnets = int(args["subnets"])
    shapes = (leaf.global_shape(subnets) for _, leaf in layout.leaves)
    assert sorted(shapes) == sorted(leaf.shape for leaf in jax.tree.leaves(nnx.state(args["wide"])))


def init(args, stacked):
    subnets = int(args["subnets"])
    layout({**args, "x": jnp.asarray(args["x"])}, stacked.layout)
    for path, leaf in by_path(stacked.tree).items():
        assert leaf.shape == (subnets, *stacked.layout.by_path[path].narrow_shape)
        assert np.isfinite(leaf).all()
        if path[-1] == "kernel" and leaf[0].size > 4:
            assert len({float(np.sum(part)) for part in leaf}) == subnets


def forward(variables, x):
    """Evaluate the tiny network in NumPy."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(variables["params"]))
    y = np.maximum(x @ p["stem"]["kernel"] + p["stem"]["bias"], 0)
    y = y @ p["body"]["kernel"] + p["body"]["bias"]
    y = np.concatenate([x, y], -1)
    return y @ p["head"]["kernel"] + p["head"]["bias"]


def parts_of(stacked):
    return [
        jax.tree.map(lambda leaf, k=k: leaf[k], stacked.tree) for k in range(stacked.layout.subnets)
    ]


def apply(args, logits):
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


def decompose(args, subnet):
    network, subnets = args["network"], int(args["subnets"])
    assert subnets >= 1
    assert type(subnet) is type(network) or isinstance(network, Narrow)
    if subnets > 1 and not isinstance(network, Narrow):
        assert jax.tree.map(lambda w: subnets * w, subnet.width) == network.width
        assert network.width != 0


def verify(args, report):
    parts, x = parts_of(args["stacked"]), np.asarray(args["x"])
    if len(parts) == 1:  # nothing is compared, whatever the tolerance
        assert report == dcjax.Report((), 0.0)
        return
    composed = dcjax.compose(
        args["stacked"], **{k: args[k] for k in ("head", "weights") if k in args}
    )
    head_weights = head_weights_for(args, len(parts))
    limit = 1e-4 if args.get("tolerance") is None else float(args["tolerance"])
    assert report.error <= limit
    with np.errstate(all="ignore"):
        expected = np.tensordot(head_weights, [forward(part, x) for part in parts], 1)
        got = forward(composed, x)
    if limit < 1e-2 and np.isrealobj(x) and np.abs(expected).max(initial=0) < 1e3:
        np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)


def verify_functions(args, report):
    assert report.error <= 1e-4
    assert bool(report.layers) == (args["stacked"].layout.subnets > 1)


def state(args, state):
    """Check traces and moments: the sub-networks', times powers of their weights in the body."""
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
        head_weights = head_weights_for(args, subnets)
        factors = head_weights ** (2 if kind == "nu" else 1)
        parts = np.asarray(old[path], np.float64)
        whole = np.asarray(got[path], np.float64)
        if rule.is_mean:
            assert_leaf(got[path], np.tensordot(head_weights, parts, 1).astype(np.float32), path)
        for k in range(subnets if not rule.is_mean else 0):
            block = whole[np.ix_(*(p[k] for p in places_of(rule, subnets)))]
            expected = parts[k] * (1 if rule.head else factors[k])
            split = ~np.isin(np.arange(block.shape[0]), fixed_of(rule, subnets)[0])
            np.testing.assert_allclose(block[split], expected[split], rtol=1e-5, atol=1e-30)


def samples(args, way):
    x = args["x"] if is_key(args["x"]) else canonical(args["x"])
    split, join = way.split(args["x"]), way.join(args["x"])
    assert len(split) == way.subnets
    assert type(way.subnets) is int
    assert split.shape[1] == len(x)
    if is_key(x):
        return
    joined = x if way.name == "replicate" else np.concatenate(list(split), -1)
    np.testing.assert_array_equal(canonical(join), joined)
    if way.name in ("phases", "tiles"):
        assert np.asarray(split).size == x.size
        np.testing.assert_array_equal(np.sort(np.ravel(split)), np.sort(np.ravel(x)))


def transfer(args, stacked):
    """Check that what is to be trained fits the data."""
    layout({**args, "x": np.asarray(args["train"][0], np.float32)}, stacked.layout)
    assert args["learning_rate"] > 0
    assert len(args["epochs"]) == 2
    for images, labels in (args["train"], args["test"]):
        labels = np.asarray(labels)
        assert len(images) == len(labels)
        assert labels.dtype.kind in "iu"
        assert 0 <= labels.min() <= labels.max() < stacked.layout.by_path[HEAD].narrow_shape[-1]
        assert np.isfinite(images).all()


HEAD = ("params", "head", "bias")


def load_run(args, model):
    config = args["config"]
    assert model.subnets == config["subnets"]
    assert [*model.shape] == [*config["images"]["shape"]]
    assert model.dtype == config["images"]["dtype"]
