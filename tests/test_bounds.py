import functools

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from dcjax._bounds import Bounds, BoundsSums, bounds, bounds_finish, bounds_update

few = settings(deadline=None, max_examples=60)
jit_bounds = jax.jit(bounds)
SHAPES = [(1, 6, 3), (2, 6, 2), (3, 6, 4), (5, 6, 1)]  # few, as each one compiles


@st.composite
def cases(draw):
    """Adversarial logits (ties, equal sub-networks, huge, masked classes), labels and weights."""
    k, n, c = draw(st.sampled_from(SHAPES))
    numbers = draw(
        st.sampled_from(
            [
                st.sampled_from([0.0, 1.0, -1.0]),
                st.sampled_from([1e4, -1e4, 9999.999, 0.1]),
                st.floats(-1e4, 1e4, width=32),
                st.floats(-1, 1, width=32),
            ]
        )
    )
    logits = draw(hnp.arrays(np.float32, (k, n, c), elements=numbers))
    if draw(st.booleans()):
        logits[:] = logits[0]
    labels = draw(hnp.arrays(np.int32, n, elements=st.integers(0, c - 1)))
    if draw(st.booleans()):
        masked = draw(hnp.arrays(bool, (k, n, c)))
        logits[masked & (np.arange(c) != labels[:, None])] = -np.inf
    weights = draw(hnp.arrays(np.float64, k, elements=st.sampled_from([0.0, 0.1, 1.0, 3.0])))
    weights[draw(st.integers(0, k - 1))] = 1.0
    return logits, labels, (weights / weights.sum()).astype(np.float32)


def log_odds(logits, labels):
    """log(exp(CE) − 1) in float64: of the other classes' exponentials over the own one's."""
    own = np.arange(logits.shape[-1]) == labels[:, None]
    logit = np.take_along_axis(
        logits, np.broadcast_to(labels[:, None], (*logits.shape[:-1], 1)), -1
    )
    differences = np.where(own, -np.inf, logits - logit)
    largest = np.maximum(differences.max(-1, keepdims=True), -1e300)
    with np.errstate(divide="ignore"):
        return (largest + np.log(np.exp(differences - largest).sum(-1, keepdims=True)))[..., 0]


def reference(logits, labels, weights):
    """The definitions, in float64 and with no margin for rounding."""
    used = weights > 0
    logits, weights = logits[used].astype(np.float64), weights[used].astype(np.float64)
    right = (logits.argmax(-1) == labels).all(0)
    own = np.take_along_axis(logits, np.broadcast_to(labels[:, None], (*logits.shape[:2], 1)), -1)
    # Differences first: in means of logits of 1e30 float64 loses what tells two classes apart.
    with np.errstate(invalid="ignore"):
        mean = np.tensordot(weights, logits - own, 1)
    wrong = ((logits >= own).all(0) & (mean > 0)).any(-1)
    count = logits.shape[-1] - 1
    margins = -mean.sum(-1) / max(count, 1)
    lower = np.log(count) - margins if count else np.full(len(labels), -np.inf)
    costs = log_odds(mean, labels), np.tensordot(weights, log_odds(logits, labels), 1), lower
    verdicts = mean.argmax(-1) == labels, right, ~wrong
    return Bounds(*(np.logaddexp(0, odds).mean() for odds in costs), *(v.mean() for v in verdicts))


def random_case(k=4, n=50, c=10, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(k, n, c))
    labels = rng.integers(0, c, n)
    logits[:, np.arange(n), labels] += scale
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels)


def assert_ordered(found, cost, accuracy):
    assert float(found.cost_lower) <= float(cost) <= float(found.cost_upper)
    assert float(found.accuracy_lower) <= float(accuracy) <= float(found.accuracy_upper)


@few
@given(cases())
def test_the_bounds_hold_for_what_is_computed_and_for_what_is_true(case):
    found, true = jit_bounds(*case[:2], weights=case[2]), reference(*case)
    assert_ordered(found, found.cost, found.accuracy)
    assert_ordered(found, true.cost, true.accuracy)
    np.testing.assert_allclose(found.cost, true.cost, rtol=1e-5, atol=1e-3)


@few
@given(cases())
def test_the_accuracy_bounds_hold_for_any_order_of_summation(case):
    logits, labels, _ = case
    found = jit_bounds(logits, labels, weights=np.full(len(logits), 1 / len(logits), np.float32))
    for order in (logits, logits[::-1]):
        total = functools.reduce(np.add, order) / np.float32(len(order))
        assert_ordered(found, found.cost, (total.argmax(-1) == labels).mean())


@few
@given(cases())
def test_the_margins_for_rounding_are_small(case):
    logits, labels, weights = case
    k, _, c = logits.shape
    size = 1 + 2 * np.abs(logits, where=np.isfinite(logits), out=np.zeros_like(logits)).max()
    tolerance = 2 * (k + c + 8) * np.finfo(np.float32).eps * size
    found, true = jit_bounds(logits, labels, weights=weights), reference(*case)
    np.testing.assert_allclose(found.cost_upper, true.cost_upper, rtol=1e-5, atol=tolerance)
    np.testing.assert_allclose(found.cost_lower, true.cost_lower, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.3, 0.4], [0, 0.5, 0, 0.5]])
@pytest.mark.parametrize("scale", [0.1, 3.0, 1e4])
def test_all_six_are_those_of_the_definitions(weights, scale):
    logits, labels = random_case(scale=scale)
    convex = np.full(4, 0.25) if weights is None else np.asarray(weights)
    found = bounds(logits, labels, weights=None if weights is None else jnp.asarray(weights))
    true = reference(np.asarray(logits), np.asarray(labels), convex)
    chex.assert_trees_all_close(found, true, rtol=1e-4, atol=1e-30)
    assert all(jnp.shape(value) == () for value in found)


def test_the_cost_is_the_cross_entropy_of_the_mean_and_its_upper_bound_is_hoelder_s():
    logits, labels = random_case()
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.stack([labels] * 4))
    mean = optax.softmax_cross_entropy_with_integer_labels(logits.mean(0), labels)
    found = bounds(logits, labels)
    np.testing.assert_allclose(found.cost, mean.mean(), rtol=1e-5)
    hoelder = jnp.log1p(jnp.prod(jnp.expm1(each), axis=0) ** (1 / 4)).mean()
    np.testing.assert_allclose(found.cost_upper, hoelder, rtol=1e-4)
    assert found.cost_upper < each.mean()  # tighter than convexity


def test_the_cost_s_upper_bound_is_attained_where_wrong_classes_have_one_profile():
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 10, 50))
    profile, shift = rng.normal(size=(50, 10)), 3 * rng.normal(size=(4, 50, 1))
    own = np.arange(10) == labels[:, None]
    logits = np.where(own, rng.normal(size=(4, 50, 1)), profile + shift)
    found = bounds(jnp.asarray(logits), labels)
    np.testing.assert_allclose(found.cost_upper, found.cost, rtol=1e-5)
    assert found.cost_lower < 0.99 * found.cost


def test_the_cost_s_lower_bound_is_attained_where_the_mean_margins_are_equal():
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 10, 50))
    disagreement = rng.normal(size=(2, 50, 10))
    own = np.arange(10) == labels[:, None]
    logits = np.where(own, 1.5, np.stack([*disagreement, *-disagreement]))
    found = bounds(jnp.asarray(logits), labels)
    np.testing.assert_allclose(found.cost_lower, found.cost, rtol=1e-5)
    assert found.cost_upper > 1.01 * found.cost


def test_two_classes_attain_both_bounds_of_the_cost():
    found = bounds(*random_case(c=2))
    np.testing.assert_allclose([found.cost_lower, found.cost_upper], [found.cost] * 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("second_sample", "expected"),
    [
        ([[1.0, 0.0, 0.9], [-9.0, 0.0, 0.0]], (1 / 2, 1 / 2, 1)),  # one is outvoted: lower attained
        (
            [[1.0, 0.0, 0.9], [0.0, 0.5, 0.0]],
            (1 / 2, 1, 1),
        ),  # outvoted the other way: upper attained
        ([[0.0, 5.0, 1.0], [0.0, -5.0, 1.0]], (1 / 2, 1 / 2, 1 / 2)),  # both prefer class 2: both
        ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], (1 / 2, 1, 1)),  # a tie counts for neither
        (
            [[1e4, 9999.999, 0.0], [1e4, 9999.999, 0.0]],
            (1 / 2, 1, 1),
        ),  # nor what rounding decides
    ],
)
def test_the_accuracy_s_bounds_are_attained(second_sample, expected):
    logits = jnp.stack([jnp.array([[2.0, 0.0, 1.0]] * 2), jnp.array(second_sample)], axis=1)
    found = bounds(logits, jnp.array([0, 0]))
    assert (found.accuracy_lower, found.accuracy, found.accuracy_upper) == expected


def test_ties_go_to_the_first_class():
    logits = jnp.zeros((2, 3, 3))
    assert bounds(logits, jnp.array([0, 1, 2])).accuracy == jnp.float32(1 / 3)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0])
def test_the_accuracy_s_bounds_do_not_depend_on_the_scale(scale):
    logits, labels = random_case()
    chex.assert_trees_all_equal(bounds(scale * logits, labels)[3:], bounds(logits, labels)[3:])


def test_a_sub_network_alone_bounds_itself():
    logits, labels = random_case(k=1)
    found = bounds(logits, labels)
    chex.assert_trees_all_close(found.cost_upper, found.cost, rtol=1e-5)
    chex.assert_trees_all_close([*found[4:]], [found.accuracy] * 2, rtol=1e-6)


def test_one_class_is_always_right_at_no_cost():
    found = bounds(jnp.ones((3, 5, 1)), jnp.zeros(5, int))
    assert found == Bounds(0, 0, 0, 1, 1, 1)


def test_a_sub_network_of_weight_zero_counts_for_nothing():
    logits, labels = random_case()
    weights = jnp.array([0.25, 0, 0.5, 0.25])
    found = bounds(logits.at[1].set(jnp.nan), labels, weights=weights)
    others = reference(*map(np.asarray, (logits, labels, weights)))
    chex.assert_trees_all_close(found, others, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "int32"])
def test_other_dtypes_are_computed_in_float32(dtype):
    logits, labels = random_case()
    found = bounds(logits.astype(dtype), labels.astype("uint8"))
    chex.assert_trees_all_equal(found, bounds(logits.astype(dtype).astype("float32"), labels))
    chex.assert_type(list(found), jnp.float32)


def test_batches_add_up_with_the_padding_masked():
    logits, labels = random_case(n=50)
    padded = jnp.pad(logits, ((0, 0), (0, 10), (0, 0)), constant_values=jnp.nan)
    padded_labels = jnp.pad(labels, (0, 10), constant_values=-1)
    batches = (
        jnp.moveaxis(padded.reshape(4, 3, 20, 10), 1, 0),
        padded_labels.reshape(3, 20),
        jnp.arange(60).reshape(3, 20) < 50,
    )

    def step(sums, batch):
        return bounds_update(sums, *batch[:2], mask=batch[2]), None

    scanned, _ = jax.lax.scan(step, BoundsSums(), batches)
    eager = functools.reduce(
        lambda sums, batch: step(sums, batch)[0], zip(*batches, strict=True), BoundsSums()
    )
    assert scanned.samples == eager.samples == 50
    chex.assert_trees_all_close(bounds_finish(scanned), bounds(logits, labels), rtol=1e-5)
    chex.assert_trees_all_close(bounds_finish(eager), bounds(logits, labels), rtol=1e-5)


def test_sums_of_parts_add_up():
    logits, labels = random_case()
    parts = (bounds_update(BoundsSums(), logits[:, i::2], labels[i::2]) for i in range(2))
    found = bounds_finish(jax.tree.map(jnp.add, *parts))
    chex.assert_trees_all_close(found, bounds(logits, labels), rtol=1e-5)


def test_a_nan_spoils_the_cost_and_counts_as_wrong():
    logits, labels = random_case()
    logits = logits.at[2, 7].set(jnp.nan)
    found = bounds(logits, labels)
    assert jnp.isnan(jnp.stack(found[:3])).all()
    assert_ordered(found._replace(cost_lower=0, cost_upper=0), 0, found.accuracy)
    rest = bounds_finish(bounds_update(BoundsSums(), logits, labels, mask=jnp.arange(50) != 7))
    np.testing.assert_allclose(50 * found.accuracy, 49 * rest.accuracy, rtol=1e-6)


def test_a_label_out_of_range_spoils_the_cost_under_jit():
    logits, labels = random_case()
    for label in (-1, 10):
        found = jit_bounds(logits, labels.at[0].set(label))
        assert jnp.isnan(found.cost)
        rest = bounds_finish(bounds_update(BoundsSums(), logits, labels, mask=jnp.arange(50) > 0))
        np.testing.assert_allclose(50 * found.accuracy, 49 * rest.accuracy, rtol=1e-6)


def test_labels_of_few_bits_are_no_classes_beyond_them():
    """300 is 44 in 8 bits."""
    logits = jnp.zeros((1, 1, 300)).at[..., 300 - 256].set(9.0)
    for dtype in ("uint8", "int16", "uint32", "int32"):
        found = jit_bounds(logits, jnp.array([44], dtype))
        assert found.accuracy == 1
        np.testing.assert_allclose(found.cost, np.log1p(299 * np.exp(-9.0)), rtol=1e-4)


def test_no_samples_are_nan_under_jit():
    assert jnp.isnan(jnp.stack(jax.jit(bounds_finish)(BoundsSums()))).all()


Z = jnp.zeros((2, 3, 4))
Y = jnp.zeros(3, int)


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (ValueError, lambda: bounds(Z[0], Y), r"got .* shape \(3, 4\) .* give logits\[None\]"),
        (ValueError, lambda: bounds(Z[:0], Y), r"got .* shape \(0, 3, 4\)"),
        (ValueError, lambda: bounds(Z[:, :0], Y[:0]), r"got .* shape \(2, 0, 4\)"),
        (ValueError, lambda: bounds(Z[..., :0], Y), r"got .* shape \(2, 3, 0\)"),
        (ValueError, lambda: bounds(Z, Y[:2]), r"labels must have shape \(3,\) .* got .*\(2,\)"),
        (ValueError, lambda: bounds(Z, Y + 4), r"from 0 to 3, .* got \[4\]"),
        (ValueError, lambda: bounds(Z, Y - 1), r"from 0 to 3, .* got \[-1\]"),
        (ValueError, lambda: bounds(Z, Y.astype(float)), "labels .* dtype integer, got .* float32"),
        (ValueError, lambda: bounds(Z, Y, weights=jnp.ones(3)), r"weights .* shape \(2,\)"),
        (ValueError, lambda: bounds(Z, Y, weights=jnp.ones(2)), r"sum to 1, got \[1.0, 1.0\]"),
        (ValueError, lambda: bounds(Z, Y, weights=jnp.array([-1.0, 2])), "at least 0"),
        (ValueError, lambda: bounds(Z, Y, weights=jnp.array([jnp.nan, 1])), "at least 0"),
        (ValueError, lambda: bounds(Z, Y, weights=jnp.array([0, 1])), "weights must be floating"),
        (ValueError, lambda: bounds_update(BoundsSums(), Z, Y, mask=Y), "mask .* dtype bool"),
        (ValueError, lambda: bounds_update(BoundsSums(), Z, Y, mask=Y[:1] == 0), "mask .* shape"),
        (ValueError, lambda: bounds_finish(BoundsSums()), "from 1 to .* samples"),
        (ValueError, lambda: bounds(Z, np.array([0, 1, 2**32])), "from 0 to 3"),  # 0 in 32 bits
        (ValueError, lambda: bounds(Z, np.array([0, 1, -(2**32)])), "from 0 to 3"),
        (ValueError, lambda: bounds(Z * 1j, Y), "real .* got .* complex64"),
        (TypeError, lambda: bounds(None, Y), "logits must be numbers"),
        (TypeError, lambda: bounds(Z, ["a", "b", "c"]), "labels must be numbers"),
        (TypeError, lambda: bounds(Z, Y, weights="ab"), "weights must be numbers"),
        (TypeError, lambda: bounds(Z, [[0], [0, 1]]), "labels must be numbers"),
        (TypeError, lambda: bounds_update(None, Z, Y), "BoundsSums"),
        (TypeError, lambda: bounds_update((0,) * 7, Z, Y), "BoundsSums"),
        (TypeError, lambda: bounds_finish(BoundsSums(samples=1.0)), "samples must be one integer"),
        (TypeError, lambda: bounds_finish(BoundsSums(cost=1j)), "cost must be one floating"),
        (TypeError, lambda: bounds_finish(BoundsSums(right=np.ones(2, int))), "right must be one"),
        (ValueError, lambda: bounds_finish(BoundsSums(samples=-5)), "counts are int32"),
    ],
)
def test_what_does_not_fit_is_an_error(error, call, message):
    with pytest.raises(error, match=message):
        call()


def test_many_batches_stay_within_their_bounds():
    """Equal costs, whose sums are all rounded to the same side without what is kept beside them."""
    logits, labels = jnp.zeros((4, 100, 10)), jnp.zeros(100, int)
    sums = jax.lax.fori_loop(
        0,
        3000,
        lambda _, sums: bounds_update(sums, logits, labels),
        jax.tree.map(jnp.asarray, BoundsSums()),
    )
    found = bounds_finish(sums)
    assert found.cost_lower <= np.log(10) <= found.cost_upper
    np.testing.assert_allclose(found.cost, np.log(10), rtol=3e-7)


def test_counts_beyond_the_numbers_of_float32_are_rounded_outwards():
    count = 2**25 - 1
    found = bounds_finish(
        BoundsSums(samples=2**25, right=count, right_lower=count, right_upper=count)
    )
    assert float(found.accuracy_lower) < count / 2**25 <= float(found.accuracy_upper)


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_logits_of_float32(seed):
    """No NaN; costs beyond float32 are infinite, and the bounds hold of what is true."""
    rng = np.random.default_rng(seed)
    largest = float(np.finfo(np.float32).max)
    shapes = [(1, 1, 3), (2, 1, 2), (3, 1, 4), (5, 1, 1), (4, 3, 10)]
    for _ in range(100):
        k, n, c = shapes[rng.integers(len(shapes))]
        size = min(largest, 10 ** rng.uniform(36, 38.6))
        logits = (
            rng.normal(size=(k, n, c)) if rng.integers(2) else rng.choice([-1.0, 0, 1], (k, n, c))
        )
        logits = (logits * size).clip(-largest, largest).astype(np.float32)
        labels, weights = rng.integers(0, c, n), rng.dirichlet(np.ones(k)).astype(np.float32)
        found, true = (
            jit_bounds(logits, labels, weights=weights),
            reference(logits, labels, weights),
        )
        assert not np.isnan(found).any()
        assert_ordered(found, found.cost, found.accuracy)
        assert_ordered(found, true.cost, true.accuracy)
        if n * true.cost < largest * (1 - 1e-5):
            np.testing.assert_allclose(found.cost, true.cost, rtol=1e-4, atol=size * 1e-5)
        elif n * true.cost > largest * (1 + 1e-5):
            assert np.isinf(found.cost)


def test_large_logits_beside_small_ones_keep_the_upper_bound():
    """Compiled, the largest logit was rounded in two ways, and its term of the sum was lost."""
    logits = np.array(
        [
            [[0.34558418, 0.82161814, 0.33043706, -1.3031572], [1e30, 1e30, -0.5369532, 0.5811181]],
            [[0.3645724, 0.2941325, 0.0284222, 0.5467130], [-0.7364541, -0.16291, -0.482119, 0.59]],
        ],
        np.float32,
    )
    weights = np.array([0.45722464, 0.54277533], np.float32)
    labels = np.array([3, 0])
    found = bounds(logits, labels, weights=weights)
    assert found.cost_lower <= found.cost <= found.cost_upper
    each = [bounds(logits[:, [n]], labels[[n]], weights=weights).cost for n in (0, 1)]
    np.testing.assert_allclose(found.cost, np.mean(each), rtol=1e-5)
