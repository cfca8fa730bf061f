"""The head's weights w_k: the composed logits are Σ_k w_k z_k, with w_k = 1/K for the mean."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from dcjax._checks import array_of, shown


def head_weights_of(
    head: Literal["mean", "sum"],
    weights: Float[Array | np.ndarray, " K"] | None,
    subnets: int,
    *,
    positive: bool = False,
) -> Any:
    """Return the weights w_k of the global logits Σ_k w_k z_k, shape (K,).

    Raises:
      ValueError: `head` is unknown or a sum with weights, or the weights are not convex, or, with
        `positive`, one of them is 0.
    """
    if not isinstance(head, str) or head not in ("mean", "sum"):
        raise ValueError(
            f'expected head="mean" or "sum", got {shown(head)}; for a weighted mean give weights='
        )
    if weights is None:
        # JAX's widest float: a float64 leaf must not be divided by a float32 K.
        return np.full(subnets, 1 / subnets if head == "mean" else 1.0, jnp.result_type(float))
    if head == "sum":
        raise ValueError('weights= belong to a mean: leave head="sum" out')
    weights = array_of("weights", weights)
    check_weights("weights", weights, subnets)
    if positive and is_known(weights) and not np.all(np.asarray(weights) > 0):
        raise ValueError(
            "the head of a sub-network with weight 0 cannot be extracted, got weights "
            f"{np.asarray(weights)}"
        )
    return weights


def multiplied(part: Array, weight: Float[Array | np.ndarray, ""]) -> Array:
    """Return a sub-network's part of the head's kernel times w_k, which divides it by K."""
    return (part * weight).astype(part.dtype)


def divided(part: Array, weight: Float[Array | np.ndarray, ""]) -> Array:
    """Invert `multiplied`; counters and keys stay as they are."""
    if not jnp.issubdtype(part.dtype, jnp.inexact):
        return part
    return (part / weight).astype(part.dtype)


def merged(parts: Array, head_weights: Float[Array | np.ndarray, " K"]) -> Array:
    """Return the weighted sum over the sub-networks; for counters and keys, sub-network 0's."""
    if not jnp.issubdtype(parts.dtype, jnp.inexact):
        return parts[0]
    weights = head_weights.reshape(-1, *[1] * (parts.ndim - 1))
    return jnp.sum(parts * weights, axis=0).astype(parts.dtype)


@jax.jit
def without_diverged(tree: PyTree, head_weights: Float[Array | np.ndarray, " K"]) -> PyTree:
    """Set all values of the sub-networks with weight 0 to zero that have a NaN or an infinite one.

    Their logits, times 0, would still be NaN. Zeros pass through every layer as zeros.
    """
    left_out = jnp.zeros(head_weights.shape, bool)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            left_out |= ~jnp.isfinite(leaf).all(range(1, leaf.ndim))
    left_out &= head_weights == 0

    def zeroed(leaf: Array) -> Array:
        members: Bool[Array, "K ..."] = left_out.reshape(-1, *[1] * (leaf.ndim - 1))
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.where(members, jnp.zeros_like(leaf), leaf) if inexact else leaf

    return jax.tree.map(zeroed, tree)


def check_weights(name: str, weights: Any, subnets: int) -> None:
    """Refuse anything but K convex weights; traced values pass."""
    if not jnp.issubdtype(jnp.result_type(weights), jnp.floating):
        raise TypeError(f"{name} must be floating, got {jnp.result_type(weights)}")
    if jnp.shape(weights) != (subnets,):
        raise ValueError(f"{name} must have shape ({subnets},), got {jnp.shape(weights)}")
    if not is_known(weights):
        return
    values = np.asarray(weights, np.float64)
    if not (values.min() >= 0 and abs(values.sum() - 1) <= 1e-6):
        raise ValueError(f"{name} must be at least 0 and sum to 1, got {values.tolist()}")


def is_known(x: Any) -> bool:
    """Tell whether x has values here: JAX is not tracing it, and no other process holds parts."""
    return not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)
