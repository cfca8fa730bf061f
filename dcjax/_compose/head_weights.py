"""The head's weights w_k: the composed logits are Σ_k w_k z_k, with w_k = 1/K for the mean."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from dcjax._checks import array_of, shown
from dcjax._layout.layout import Layout


def head_weights_of(
    weights: Float[Array | np.ndarray, " K"] | None, subnets: int, *, positive: bool = False
) -> Any:
    """Return the weights w_k of the global logits Σ_k w_k z_k, shape (K,).

    Raises:
      ValueError: the weights are not K convex ones, or, with `positive`, one of them is 0. Traced
        values are not checked.
    """
    if weights is None:
        # JAX's widest float: a float64 leaf must not be divided by a float32 K.
        return np.full(subnets, 1 / subnets, jnp.result_type(float))
    weights = array_of("weights", weights)
    if weights.shape != (subnets,) or not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(f"weights must be floating, of shape ({subnets},), got {shown(weights)}")
    if not is_known(weights):
        return weights
    values = np.asarray(weights, np.float64)
    if not (values.min() >= 0 and abs(values.sum() - 1) <= 1e-6):
        raise ValueError(f"weights must be at least 0 and sum to 1, got {values.tolist()}")
    if positive and 0 in values:
        raise ValueError(
            f"the head of a sub-network with weight 0 cannot be extracted, got {values.tolist()}"
        )
    return weights


def check_head(layout: Layout) -> None:
    """Refuse a network without a head where its output is taken for logits."""
    if layout.subnets > 1 and not layout.has_head:
        raise ValueError(
            "expected a network that gives logits, got one without a head: no leaf merges the "
            "sub-networks (kind 1/K in its layout), so the composed network's output is their "
            f"{layout.subnets} outputs side by side. End it with a layer that does not grow with "
            "the width, such as nn.Dense(classes); of a network that dcjax.narrowable made, name "
            "that layer in keep. Features can be trained with a loss of your own, Recipe(loss=…)"
        )


def divided(part: Array, weight: Float[Array | np.ndarray, ""]) -> Array:
    """Divide a part of a global leaf by its weight; counters and keys stay as they are."""
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


def is_known(x: Any) -> bool:
    """Tell whether x has values here: JAX is not tracing it, and no other process holds parts."""
    return not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)
