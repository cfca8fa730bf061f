"""Bounds on the composed network's cost and accuracy from the sub-networks' logits."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Integer, Num

from dcjax._checks import array_fault, array_of, dtype_of, shown
from dcjax._compose.head_weights import check_weights, is_known

_EPSILON = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)


class Bounds(NamedTuple):
    """Cost and accuracy of the mean logits, with bounds from the sub-networks: float32 scalars.

    Attributes:
        cost: Mean cross entropy of the mean logits, in nats.
        cost_upper: Upper bound on the cost.
        cost_lower: Lower bound on the cost.
        accuracy: Fraction of samples that the mean logits classify rightly; ties go to the first
            class.
        accuracy_lower: Lower bound on the accuracy.
        accuracy_upper: Upper bound on the accuracy.
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
        samples: Number of samples. All counts are int32, so at most 2³¹ − 1.
        cost: Sum of the costs. All costs are float32, in nats.
        cost_upper: Sum of the upper bounds.
        cost_lower: Sum of the lower bounds.
        right: Number of samples that the mean logits classify rightly.
        right_lower: Number of samples that are right because the sub-networks agree.
        right_upper: Number of samples that are not wrong because the sub-networks agree.
        cost_rest: The rounding error of `cost`, to be added to it.
        cost_upper_rest: The rounding error of `cost_upper`.
        cost_lower_rest: The rounding error of `cost_lower`.
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
    logits: Num[Array, "K N C"],
    labels: Integer[Array, " N"],
    *,
    weights: Float[Array, " K"] | None = None,
) -> Bounds:
    """Bound the composed network's cost and accuracy by its sub-networks' logits.

    The composed network's logits are a convex combination z̄ = Σ_k w_k z_k, with all w_k = 1/K
    unless `weights` says otherwise. For a sample of class y write a_kc = exp(z_kc − z_ky) and
    s_k = log Σ_{c≠y} a_kc, so that CE(z_k) = log(1 + exp s_k), and likewise s̄ for z̄, whose
    ā_c = Π_k a_kc^{w_k}. Then

    * above, by Hölder's inequality with exponents 1/w_k: exp s̄ = Σ_{c≠y} Π_k a_kc^{w_k} ≤
      Π_k (Σ_{c≠y} a_kc)^{w_k}, that is s̄ ≤ Σ_k w_k s_k. With equal weights this reads
      exp CE(z̄) − 1 ≤ Π_k (exp CE(z_k) − 1)^{1/K}. Attained where all a_k are proportional, so
      always for C = 2. It is never above Σ_k w_k CE(z_k), as log(1 + exp s) is convex in s;
    * below, as the arithmetic mean is at least the geometric one: with the mean margins
      m̄_c = z̄_y − z̄_c, exp s̄ ≥ (C − 1) exp(−mean_{c≠y} m̄_c). Attained where all are equal;
    * a sample that every sub-network classifies rightly is classified rightly: each has
      z_ky ≥ z_kc for all c, strictly for c < y, and so has z̄;
    * a sample on which every sub-network prefers (z_kc ≥ z_ky) one same wrong class, and z̄
      strictly, is classified wrongly.

    Everything is computed in float32 from s and the margins, so logits of ±10⁴ are fine; other
    dtypes are converted. Every bound leaves a margin for rounding, so it holds for the computed
    values in any order of summation: K + C + 8 units of float32's rounding of the logits for the
    cost, K + 4 units for a preferred class in the accuracy; a fraction that float32 cannot hold is
    rounded outward. A composed network that rounds its features more, as in bfloat16, may differ by
    more than that margin.

    Logits of −∞ at a wrong class (a masked class) are fine. A sample with a NaN, or with −∞ at its
    class, makes the mean cost NaN or ∞. With a NaN it counts as classified wrongly, and the bounds
    on accuracy hold.

    Args:
        logits: (K, N, C), K sub-networks' logits of N samples and C classes.
        labels: (N,), integers in [0, C). Under `jit` they cannot be checked: one outside makes the
            costs NaN and counts as classified wrongly.
        weights: (K,), non-negative with sum 1, the head's weights; a sub-network of weight 0 is
            ignored. The default is 1/K each.

    Returns:
        Means over the N samples.

    Raises:
        TypeError: Logits are not real numbers, or labels not integers.
        ValueError: Shapes do not fit or are empty, a label is out of range, or the weights are not
            convex.

    References:
        L. Gu, W. Zhang, J. Liu, X.-C. Cai, ETNA 56 (2022) 157–186, doi 10.1553/etna_vol56s157,
        states bounds on cost and accuracy by the sub-networks' values; the derivations here are
        ours.

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
    logits: Num[Array, "K N C"],
    labels: Integer[Array, " N"],
    *,
    weights: Float[Array, " K"] | None = None,
    mask: Bool[Array, " N"] | None = None,
) -> BoundsSums:
    """Add a batch to the sums of `bounds`, for data sets that do not fit in memory at once.

    Pure: it jits, and is the step of a `jax.lax.scan`.

    Args:
        sums: The sums of the previous batches; `BoundsSums()` at first.
        logits: As in `bounds`.
        labels: As in `bounds`.
        weights: As in `bounds`, the same for all batches.
        mask: (N,), false for samples that only fill the batch: they are ignored.

    Returns:
        The sums including the batch.

    Raises:
        TypeError: As in `bounds`, or the mask is not boolean, or `sums` is not a `BoundsSums`.
        ValueError: As in `bounds`, or the mask's shape does not fit.

    >>> sums = BoundsSums()
    >>> for batch in range(3):
    ...     sums = bounds_update(sums, jnp.zeros((4, 2, 10)), jnp.array([0, 1]))
    >>> print(sums.samples, bounds_finish(sums).accuracy)
    6 0.5
    """
    _check_sums(sums)
    logits, labels = array_of("bounds: logits", logits), _labels(labels)
    weights = None if weights is None else array_of("bounds: weights", weights)
    mask = None if mask is None else array_of("bounds: mask", mask)
    _check(logits, labels, weights, mask)
    subnets, samples, _ = jnp.shape(logits)
    convex = np.full(subnets, 1 / subnets, np.float32) if weights is None else weights
    return _add(sums, logits, labels, convex, np.ones(samples, bool) if mask is None else mask)


def bounds_finish(sums: BoundsSums) -> Bounds:
    """Return the bounds of all samples that `bounds_update` has added.

    Args:
        sums: The sums of all batches.

    Returns:
        Means over the samples. Under `jit`, NaN without samples.

    Raises:
        TypeError: `sums` is not a `BoundsSums` of counts and costs.
        ValueError: There are no samples, or the counts have overflowed.

    >>> bounds_finish(BoundsSums())
    Traceback (most recent call last):
    ValueError: no samples to take the means of: ...
    """
    _check_sums(sums)
    _check_counts(sums)
    samples = jnp.asarray(sums.samples, jnp.float32)
    costs = {n: jnp.asarray(getattr(sums, n)) + getattr(sums, f"{n}_rest") for n in _COSTS}
    return Bounds(
        **{name: total / samples for name, total in costs.items()},
        accuracy=_fraction(sums.right, sums.samples, 0.0),
        accuracy_lower=_fraction(sums.right_lower, sums.samples, -2 * _EPSILON),
        accuracy_upper=_fraction(sums.right_upper, sums.samples, 2 * _EPSILON),
    )


@jax.jit
def _fraction(
    count: Int[Array, ""], samples: Int[Array, ""], nudge: Float[Array, ""]
) -> Float[Array, ""]:
    """Return count / samples, moved by the factor 1 + `nudge` if float32 cannot hold it."""
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
    """Add a batch to the sums, without checks."""
    batch = _per_sample(
        logits.astype(jnp.float32),
        labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32),
        weights.astype(jnp.float32),
    )

    added = {}
    for name in _COUNTS + _COSTS:
        total = jnp.asarray(getattr(sums, name))
        part = getattr(batch, name).sum(where=kept, dtype=total.dtype)
        added[name] = new = total + part
        if name in _COUNTS:
            continue
        # Over many batches rounding errors would exceed the bounds' margin, so they are kept.
        lost = (total - (new - (new - total))) + (part - (new - total))
        rest = getattr(sums, f"{name}_rest")
        added[f"{name}_rest"] = rest + jnp.where(jnp.isfinite(new), lost, 0)
    return BoundsSums(**added)


def _per_sample(
    logits: Float[Array, "K N C"], labels: Integer[Array, " N"], weights: Float[Array, " K"]
) -> BoundsSums:
    """Compute every sample's costs and verdicts, (N,) each."""
    own = jnp.arange(logits.shape[-1], dtype=labels.dtype) == labels[:, None]
    sizes = _mean(weights, jnp.abs(logits))
    sizes = jnp.where(jnp.isfinite(sizes), sizes, 0)  # the margin of a masked class is exact
    sizes = _own_logit(sizes, own) + sizes
    return BoundsSums(
        jnp.ones_like(labels, bool),
        *_costs(logits, own, weights, sizes),
        *_verdicts(logits, own, weights, sizes),
    )


def _costs(
    logits: Float[Array, "K N C"],
    own: Bool[Array, "N C"],
    weights: Float[Array, " K"],
    sizes: Float[Array, "N C"],
) -> tuple[Float[Array, " N"], Float[Array, " N"], Float[Array, " N"]]:
    """Compute cost, upper and lower bound: log(1 + exp s) of s̄ and of its bounds."""
    subnets, _, classes = logits.shape
    # Rounding errors of sums over sub-networks and classes, of differences, exp and log.
    rounding = (subnets + classes + 8) * _EPSILON * (1 + sizes)
    margins = _own_logit(logits, own) - logits
    mean_margins = _mean(weights, margins)
    total = jnp.where(own, 0, mean_margins + rounding).sum(-1)
    log_others = math.log(classes - 1) if classes > 1 else -math.inf
    return (
        jax.nn.softplus(_log_odds(-mean_margins, own)),
        jax.nn.softplus(_mean(weights, _log_odds(rounding - margins, own))),
        jax.nn.softplus(log_others - total / max(classes - 1, 1)),
    )


def _verdicts(
    logits: Float[Array, "K N C"],
    own: Bool[Array, "N C"],
    weights: Float[Array, " K"],
    sizes: Float[Array, "N C"],
) -> tuple[Bool[Array, " N"], Bool[Array, " N"], Bool[Array, " N"]]:
    """Tell whether the mean is right, right by agreement, and not wrong by agreement."""
    # Rounding errors of sums over sub-networks, and of differences that are flushed to zero.
    rounding = (len(logits) + 4) * _EPSILON * sizes + _TINY
    margins = _own_logit(logits, own) - logits
    mean_margins = _mean(weights, margins)
    idle = weights == 0
    agree_right = (_is_right(logits, own) | idle[:, None]).all(0)
    agree_wrong = ((margins <= 0) | idle[:, None, None]).all(0)
    return (
        _is_right(_mean(weights, logits), own),
        agree_right & (own | (mean_margins > rounding)).all(-1),
        ~(agree_wrong & (mean_margins < -rounding)).any(-1),
    )


def _mean(weights: Float[Array, " K"], values: Float[Array, "K ..."]) -> Float[Array, "..."]:
    """Return the weighted mean over the sub-networks; weight 0 excludes even a NaN."""
    weights = weights.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(weights > 0, weights * values, 0).sum(0)


def _own_logit(logits: Float[Array, "... N C"], own: Bool[Array, "N C"]) -> Float[Array, "... N 1"]:
    """Return the logit of each sample's class; NaN if the label is not a class."""
    logit = jnp.where(own, logits, 0).sum(-1, keepdims=True)
    return jnp.where(own.any(-1, keepdims=True), logit, jnp.nan)


def _log_odds(values: Float[Array, "... N C"], own: Bool[Array, "N C"]) -> Float[Array, "... N"]:
    """Return the log of the sum of exponentials over the other classes."""
    return jax.nn.logsumexp(values, axis=-1, where=~own)


def _is_right(logits: Float[Array, "... N C"], own: Bool[Array, "N C"]) -> Bool[Array, "... N"]:
    """Tell whether the sample's class is the first with the largest logit; false with a NaN."""
    logit = _own_logit(logits, own)
    earlier = jnp.cumsum(own, axis=-1) == 0
    return jnp.where(earlier, logits < logit, logits <= logit).all(-1)


def _check(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None, mask: ArrayLike | None
) -> None:
    """Refuse arguments that `bounds` cannot take; traced values pass."""
    shape = jnp.shape(logits)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(
            "expected logits (K, N, C) of K sub-networks, N samples and C classes, all at least 1; "
            f"got shape {shape}. For one network's logits (N, C), give logits[None]"
        )
    if jnp.issubdtype(jnp.result_type(logits), jnp.complexfloating):
        raise TypeError(f"bounds: logits must be real, got {jnp.result_type(logits)}")
    subnets, samples, classes = shape
    _check_vector("labels", labels, samples, jnp.integer)
    if mask is not None:
        _check_vector("mask", mask, samples, jnp.bool_)
    if weights is not None:
        check_weights("bounds: weights", weights, subnets)
    _check_labels(labels, classes, mask)


def _labels(labels: Any) -> Array:
    """Return labels as a JAX array; labels beyond int32 stay out of range."""
    if isinstance(labels, (np.ndarray, np.generic)) and labels.dtype.kind in "iu":
        labels = np.clip(labels, -1, np.iinfo(np.int32).max).astype(np.int32)
    return array_of("bounds: labels", labels)


def _check_sums(sums: Any) -> None:
    """Refuse anything but scalar counts and costs."""
    if not isinstance(sums, BoundsSums):
        raise TypeError(f"sums must be a dcjax.BoundsSums from bounds_update, got {shown(sums)}")
    wrong = []
    for name, value in sums._asdict().items():
        kind = jnp.floating if name.startswith("cost") else jnp.integer
        if array_fault(value) or jnp.shape(value) or not jnp.issubdtype(dtype_of(value), kind):
            wrong.append(f"{name} must be one {kind.__name__}, got {shown(value)}")
    if wrong:
        raise TypeError("this is not a valid dcjax.BoundsSums:\n  " + "\n  ".join(wrong))


def _check_counts(sums: BoundsSums) -> None:
    """Refuse sums without samples, and counts that have overflowed; traced counts pass."""
    counts = (sums.samples, sums.right, sums.right_lower, sums.right_upper)
    if not all(map(is_known, counts)):
        return
    samples, *right = (int(np.asarray(count)) for count in counts)
    if samples == 0:
        raise ValueError("no samples to take the means of: add a batch with bounds_update first")
    if not all(0 <= count <= samples for count in right):
        raise ValueError(
            f"{right} of {samples} samples are right, which cannot be: counts are int32 and hold "
            "at most 2³¹ − 1 samples"
        )


def _check_vector(name: str, x: ArrayLike, length: int, kind: type) -> None:
    """Refuse anything but a vector of that length and kind of numbers."""
    if not jnp.issubdtype(jnp.result_type(x), kind):
        raise TypeError(f"bounds: {name} must be {kind.__name__}, got {jnp.result_type(x)}")
    if jnp.shape(x) != (length,):
        raise ValueError(f"bounds: {name} must have shape ({length},), got {jnp.shape(x)}")


def _check_labels(labels: ArrayLike, classes: int, mask: ArrayLike | None) -> None:
    """Refuse labels that are not classes, except where masked; traced labels pass."""
    if not (is_known(labels) and is_known(mask)):
        return
    values = np.asarray(labels)[... if mask is None else np.asarray(mask)]
    outside = np.unique(values[(values < 0) | (values >= classes)])
    if outside.size:
        raise ValueError(
            f"bounds: labels must be classes from 0 to {classes - 1}, as the logits have {classes} "
            f"of them; got {outside[:5].tolist()}. Leave padding out with bounds_update's mask="
        )
