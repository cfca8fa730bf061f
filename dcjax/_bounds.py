"""Bounds on the composed network's cost and accuracy, from the sub-networks' logits."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Integer, Num

from dcjax._checks import array_fault, array_of, shown
from dcjax._compose.head_weights import head_weights_of, is_known

_EPSILON = float(np.finfo(np.float32).eps)
_LARGEST = float(np.finfo(np.float32).max)
_TINY = float(np.finfo(np.float32).tiny)


class Bounds(NamedTuple):
    """Cost and accuracy of the mean logits, with bounds from the sub-networks: float32 scalars.

    Attributes:
      cost: mean cross entropy of the mean logits, in nats.
      cost_upper: upper bound on the cost.
      cost_lower: lower bound on the cost.
      accuracy: fraction of samples that the mean logits classify correctly; ties go to the first
        class.
      accuracy_lower: lower bound on the accuracy.
      accuracy_upper: upper bound on the accuracy.
    """

    cost: Float[Array, ""]
    cost_upper: Float[Array, ""]
    cost_lower: Float[Array, ""]
    accuracy: Float[Array, ""]
    accuracy_lower: Float[Array, ""]
    accuracy_upper: Float[Array, ""]


class BoundsSums(NamedTuple):
    """Sums over samples, from which `bounds_finish` makes `Bounds`; `BoundsSums()` is empty.

    The sums of two parts of a data set add up leaf by leaf: `jax.tree.map(jnp.add, a, b)`, or
    `jax.lax.psum` over devices.

    Attributes:
      samples: number of samples. Counts are int32, so at most 2³¹ − 1.
      cost: sum of the costs in nats, float32.
      cost_upper: sum of the upper bounds.
      cost_lower: sum of the lower bounds.
      right: number of samples that the mean logits classify correctly.
      right_lower: number of samples that the sub-networks' agreement proves correct.
      right_upper: number of samples that the sub-networks' agreement does not prove wrong.
      cost_rest: the rounding error of `cost`, to be added to it.
      cost_upper_rest: the rounding error of `cost_upper`.
      cost_lower_rest: the rounding error of `cost_lower`.
    """

    samples: ArrayLike = np.int32(0)
    cost: ArrayLike = np.float32(0)
    cost_upper: ArrayLike = np.float32(0)
    cost_lower: ArrayLike = np.float32(0)
    right: ArrayLike = np.int32(0)
    right_lower: ArrayLike = np.int32(0)
    right_upper: ArrayLike = np.int32(0)
    cost_rest: ArrayLike = np.float32(0)
    cost_upper_rest: ArrayLike = np.float32(0)
    cost_lower_rest: ArrayLike = np.float32(0)


_COSTS = ("cost", "cost_upper", "cost_lower")
_COUNTS = ("samples", "right", "right_lower", "right_upper")


def bounds(
    logits: Num[Array | np.ndarray, "K N C"],
    labels: Integer[Array | np.ndarray, " N"],
    *,
    weights: Float[Array | np.ndarray, " K"] | None = None,
) -> Bounds:
    """Bound the composed network's cost and accuracy by its sub-networks' logits.

    The composed network's logits are a convex combination z̄ = Σ_k w_k z_k, with w_k = 1/K by
    default. For a sample of class y write a_kc = exp(z_kc − z_ky) and s_k = log Σ_{c≠y} a_kc, so
    that CE(z_k) = log(1 + exp s_k), and likewise s̄ for z̄, whose ā_c = Π_k a_kc^{w_k}. Then

    * above, by Hölder's inequality with exponents 1/w_k: exp s̄ = Σ_{c≠y} Π_k a_kc^{w_k} ≤
      Π_k (Σ_{c≠y} a_kc)^{w_k}, that is s̄ ≤ Σ_k w_k s_k. With equal weights this reads
      exp CE(z̄) − 1 ≤ Π_k (exp CE(z_k) − 1)^{1/K}. Equality holds where all a_k are proportional,
      so always for C = 2. The bound is at most Σ_k w_k CE(z_k), as log(1 + exp s) is convex in s;
    * below, as the arithmetic mean is at least the geometric one: with the mean margins
      m̄_c = z̄_y − z̄_c, exp s̄ ≥ (C − 1) exp(−mean_{c≠y} m̄_c). Equality holds where all margins
      are equal;
    * a sample that every sub-network classifies correctly is classified correctly: each has
      z_ky ≥ z_kc for all c, strictly for c < y, and so has z̄;
    * a sample on which every sub-network prefers (z_kc ≥ z_ky) the same wrong class, and z̄
      strictly, is classified wrongly.

    The computation uses float32 and works on s and the margins, so logits of ±10⁴ are fine. Every
    bound leaves a margin for rounding, so it holds for the computed values too, in any order of
    summation: K + C + 8 units of float32 rounding of the logits for the cost, and K + 4 for the
    accuracy. A fraction that float32 cannot hold is rounded outward. A composed network that rounds
    its features more, as in bfloat16, may differ by more than these margins.

    Logits of −∞ at a wrong class (a masked one) are fine. A sample with a NaN, or with −∞ at its
    label, makes the costs NaN or ∞. A sample with a NaN counts as classified wrongly, and the
    bounds on accuracy hold. Costs whose sum float32 cannot hold are ∞, and their
    lower bound is its largest number.

    Args:
      logits: (K, N, C), K sub-networks' logits of N samples and C classes, of a network with a head
        (`Layout.has_head`): without one the composed network does not average them.
      labels: (N,), integers in [0, C). Under `jit` they are not checked: a label out of range makes
        the costs NaN and counts as classified wrongly.
      weights: (K,), non-negative with sum 1, the weights of the head; 1/K each by default. A
        sub-network of weight 0 does not count, whatever its logits are.

    Returns:
      Means over the N samples.

    Raises:
      TypeError: an argument is not an array of numbers.
      ValueError: a shape or dtype does not fit, a label is out of range, or the weights are not
        convex.

    References:
      L. Gu, W. Zhang, J. Liu, X.-C. Cai, ETNA 56 (2022) 157–186, doi 10.1553/etna_vol56s157, states
      bounds on cost and accuracy by the sub-networks' values; the derivations here are ours.

    >>> logits = jnp.array([[[2.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 3.0]]])
    >>> found = bounds(logits, jnp.array([0, 0]))
    >>> print(f"{found.accuracy_lower} <= {found.accuracy} <= {found.accuracy_upper}")
    0.5 <= 0.5 <= 1.0
    >>> print(f"{found.cost_lower:.3f} <= {found.cost:.3f} <= {found.cost_upper:.3f}")
    0.720 <= 0.720 <= 0.720
    """
    return bounds_finish(bounds_update(BoundsSums(), logits, labels, weights=weights))


def bounds_update(
    sums: BoundsSums,
    logits: Num[Array | np.ndarray, "K N C"],
    labels: Integer[Array | np.ndarray, " N"],
    *,
    weights: Float[Array | np.ndarray, " K"] | None = None,
    mask: Bool[Array | np.ndarray, " N"] | None = None,
) -> BoundsSums:
    """Add a batch to the sums of `bounds`, for data sets that do not fit in memory at once.

    A pure function: it jits, and can be the step of a `jax.lax.scan`.

    Args:
      sums: the sums of the previous batches; `BoundsSums()` to begin with.
      logits: as in `bounds`.
      labels: as in `bounds`.
      weights: as in `bounds`, the same for all batches.
      mask: (N,), false for padding, which is left out whatever its logits and labels are.

    Returns:
      The sums including the batch.

    Raises:
      TypeError: as in `bounds`, or `sums` is not a `BoundsSums` of counts and costs.
      ValueError: as in `bounds`.

    >>> sums = BoundsSums()
    >>> for batch in range(3):
    ...     sums = bounds_update(sums, jnp.zeros((4, 2, 10)), jnp.array([0, 1]))
    >>> print(sums.samples, bounds_finish(sums).accuracy)
    6 0.5
    """
    _check_sums(sums)
    logits, given = array_of("bounds: logits", logits), labels
    labels = array_of("bounds: labels", labels)
    shape, complex_ = logits.shape, jnp.issubdtype(logits.dtype, jnp.complexfloating)
    if len(shape) != 3 or 0 in shape or complex_:
        raise ValueError(
            "bounds: expected non-empty, real logits (K, N, C) of K sub-networks, N samples and C "
            f"classes, got {shown(logits)}. For one network's logits (N, C), give logits[None]"
        )
    subnets, samples, classes = shape
    mask = array_of("bounds: mask", np.ones(samples, bool) if mask is None else mask)
    for name, vector, kind in (("labels", labels, jnp.integer), ("mask", mask, jnp.bool_)):
        if vector.shape != (samples,) or not jnp.issubdtype(vector.dtype, kind):
            raise ValueError(
                f"bounds: {name} must have shape ({samples},) and dtype {kind.__name__}, got "
                f"{shown(vector)}"
            )
    if is_known(labels) and is_known(mask):
        # The labels as given: cut to JAX's 32 bits, one that is out of range might not be.
        values = np.asarray(given)[np.asarray(mask)]
        outside = np.unique(values[(values < 0) | (values >= classes)])
        if outside.size:
            raise ValueError(
                f"bounds: labels must be from 0 to {classes - 1}, as the logits have {classes} "
                f"classes, got {outside[:5].tolist()}. Leave padding out with bounds_update's mask="
            )
    return _add(sums, logits, labels, head_weights_of(weights, subnets), mask)


def bounds_finish(sums: BoundsSums) -> Bounds:
    """Return the bounds of all samples that `bounds_update` has added.

    Args:
      sums: the sums of all batches.

    Returns:
      Means over the samples. Under `jit`, NaN if there are none.

    Raises:
      TypeError: `sums` is not a `BoundsSums` of counts and costs.
      ValueError: the sums hold no samples, or more than int32 can count.

    >>> sums = BoundsSums(samples=4, cost=2.0, cost_upper=3.0, right=1, right_upper=2)
    >>> print(*bounds_finish(sums))
    0.5 0.75 0.0 0.25 0.0 0.5
    """
    _check_sums(sums)
    if is_known(sums.samples) and np.asarray(sums.samples) <= 0:
        raise ValueError(f"expected from 1 to 2³¹ − 1 samples, as counts are int32: {sums}")
    samples = jnp.asarray(sums.samples, jnp.float32)
    costs = {n: jnp.asarray(getattr(sums, n)) + getattr(sums, f"{n}_rest") for n in _COSTS}
    return Bounds(
        **{name: total / samples for name, total in costs.items()},
        accuracy=_fraction(sums.right, sums.samples, 0.0),
        accuracy_lower=_fraction(sums.right_lower, sums.samples, -2 * _EPSILON),
        accuracy_upper=_fraction(sums.right_upper, sums.samples, 2 * _EPSILON),
    )


def _check_sums(sums: Any) -> None:
    """Refuse anything but scalar counts and costs."""
    if not isinstance(sums, BoundsSums):
        raise TypeError(
            f"expected a dcjax.BoundsSums, as bounds_update returns it, got {shown(sums)}"
        )
    for name, value in sums._asdict().items():
        kind = jnp.floating if name.startswith("cost") else jnp.integer
        fault = array_fault(value) or jnp.shape(value)
        if fault or not jnp.issubdtype(jnp.result_type(value), kind):
            raise TypeError(f"BoundsSums: {name} must be one {kind.__name__}, got {shown(value)}")


@jax.jit
def _fraction(
    count: Int[Array, ""], samples: Int[Array, ""], nudge: Float[Array, ""]
) -> Float[Array, ""]:
    """Return count / samples, times 1 + nudge where float32 cannot hold it exactly."""
    divisor = jnp.maximum(jnp.gcd(count, samples), 1)
    numerator, denominator = count // divisor, samples // divisor
    exact = (denominator & (denominator - 1) == 0) & (numerator <= 2**24)
    fraction = numerator.astype(jnp.float32) / denominator.astype(jnp.float32)
    return jnp.where(exact, fraction, jnp.minimum(fraction * (1 + nudge), 1))


@jax.jit
def _add(
    sums: BoundsSums,
    logits: Num[Array, "K N C"],
    labels: Integer[Array, " N"],
    weights: Float[Array, " K"],
    kept: Bool[Array, " N"],
) -> BoundsSums:
    """Add a batch without checks and defaults."""
    batch = _per_sample(
        logits.astype(jnp.float32),
        labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32),
        weights.astype(jnp.float32),
    )

    added = {}
    for name in _COUNTS + _COSTS:
        # A half-precision sum would be too coarse for the bounds' margin.
        total = jnp.asarray(getattr(sums, name), jnp.float32 if name in _COSTS else None)
        part = getattr(batch, name).sum(where=kept, dtype=total.dtype)
        new = total + part
        # A lower bound stays one if the sum is beyond float32.
        added[name] = jnp.minimum(new, _LARGEST) if name == "cost_lower" else new
        if name in _COUNTS:
            continue
        # Compensated summation: over many batches rounding errors would exceed the bounds' margin.
        lost = (total - (new - (new - total))) + (part - (new - total))
        rest = getattr(sums, f"{name}_rest")
        added[f"{name}_rest"] = rest + jnp.where(jnp.isfinite(new), lost, 0)
    return BoundsSums(**added)


def _per_sample(
    logits: Float[Array, "K N C"], labels: Integer[Array, " N"], weights: Float[Array, " K"]
) -> BoundsSums:
    """Return every sample's costs and verdicts, (N,) each."""
    subnets, _, classes = logits.shape
    is_label = jnp.arange(classes, dtype=labels.dtype) == labels[:, None]
    # Margins are divided by this, as logits near float32's largest have margins beyond it, and sums
    # of margins even more so. A power of two changes no bit otherwise.
    scale = 4 * 2 ** (classes - 1).bit_length()
    scaled = logits / scale
    margins = _label_logit(scaled, is_label) - scaled
    mean_margins = _mean(weights, margins)
    sizes = _mean(weights, jnp.abs(scaled))
    sizes = jnp.where(jnp.isfinite(sizes), sizes, 0)  # the margin of a masked class is exact
    sizes = _label_logit(sizes, is_label) + sizes

    # Rounding errors of sums over sub-networks and classes, of differences, exp and log.
    rounding = (subnets + classes + 8) * _EPSILON * (1 / scale + sizes)
    total = jnp.where(is_label, 0, mean_margins + rounding).sum(-1)
    log_others = math.log(classes - 1) if classes > 1 else -math.inf
    log_odds = _log_odds(-mean_margins, is_label, scale)
    log_odds_upper = _mean(weights, _log_odds(rounding - margins, is_label, scale))
    log_odds_lower = log_others / scale - total / max(classes - 1, 1)

    # Rounding errors of sums over sub-networks, and of differences so small that they become zero.
    rounding = (subnets + 4) * _EPSILON * sizes + _TINY
    idle = weights == 0
    agree_right = (_is_right(logits, is_label) | idle[:, None]).all(0)
    agree_wrong = ((margins <= 0) | idle[:, None, None]).all(0)
    return BoundsSums(
        samples=jnp.ones_like(labels, bool),
        cost=jax.nn.softplus(scale * log_odds),
        cost_upper=jax.nn.softplus(scale * log_odds_upper),
        cost_lower=jax.nn.softplus(scale * log_odds_lower),
        right=_is_right(_mean(weights, logits), is_label),
        right_lower=agree_right & (is_label | (mean_margins > rounding)).all(-1),
        right_upper=~(agree_wrong & (mean_margins < -rounding)).any(-1),
    )


def _mean(weights: Float[Array, " K"], values: Float[Array, "K ..."]) -> Float[Array, "..."]:
    """Return the weighted mean over the sub-networks, without those of weight 0 (even if NaN)."""
    weights = weights.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(weights > 0, weights * values, 0).sum(0)


def _label_logit(
    logits: Float[Array, "... N C"], is_label: Bool[Array, "N C"]
) -> Float[Array, "... N 1"]:
    """Return the logit at the label; NaN where the label is out of range."""
    logit = jnp.where(is_label, logits, 0).sum(-1, keepdims=True)
    return jnp.where(is_label.any(-1, keepdims=True), logit, jnp.nan)


def _log_odds(
    values: Float[Array, "... N C"], is_label: Bool[Array, "N C"], scale: int
) -> Float[Array, "... N"]:
    """Return log Σ exp(scale · value) / scale over the wrong classes."""
    largest = values.max(-1, keepdims=True, where=~is_label, initial=-jnp.inf)
    is_finite = jnp.isfinite(largest)
    largest = jnp.where(is_finite, largest, 0)
    # XLA may compute `values` again in another fusion, and round large ones otherwise: without the
    # limits the largest would differ from itself, and its term exp(0) = 1 could be 0 or infinite.
    less = values - largest
    less = jnp.where(is_finite, jnp.minimum(less, 0), less)
    total = jnp.exp(scale * less).sum(-1, where=~is_label)
    total = jnp.where(is_finite[..., 0], jnp.maximum(total, 1), total)
    return jnp.log(total) / scale + largest[..., 0]


def _is_right(
    logits: Float[Array, "... N C"], is_label: Bool[Array, "N C"]
) -> Bool[Array, "... N"]:
    """Tell whether the label is the first class with the largest logit; false for a NaN."""
    logit = _label_logit(logits, is_label)
    earlier = jnp.cumsum(is_label, axis=-1) == 0
    return jnp.where(earlier, logits < logit, logits <= logit).all(-1)
