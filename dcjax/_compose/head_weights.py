"""The sub-networks' shares of the merged logits: one each of K, all of a sum, or weights."""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from dcjax._checks import array_of, shown


def shares_of(
    head: Literal["mean", "sum"],
    weights: Float[Array, " K"] | None,
    subnets: int,
    *,
    positive: bool = False,
) -> Any:
    """The factors w_k of the global logits Σ_k w_k z_k, shape (K,).

    Raises:
      ValueError: another `head`, weights with a sum, or weights that are not convex; with
        `positive`, weights of 0.
    """
    if not isinstance(head, str) or head not in ("mean", "sum"):
        raise ValueError(
            f'head is "mean" or "sum", got {shown(head)}; a weighted mean takes weights='
        )
    if weights is None:
        # JAX's widest float, so that float64 leaves do not meet a rounded 1/K.
        return np.full(subnets, 1 / subnets if head == "mean" else 1.0, jnp.result_type(float))
    if head == "sum":
        raise ValueError('weights= are those of a mean: leave head="sum" out')
    weights = array_of("weights", weights)
    check_weights("weights", weights, subnets)
    if positive and is_known(weights) and not np.all(np.asarray(weights) > 0):
        raise ValueError(
            f"a sub-network of weight 0 has left nothing in the head, got {np.asarray(weights)}"
        )
    return weights


def check_weights(name: str, weights: Any, subnets: int) -> None:
    """Raise unless they are K numbers of a convex combination, as far as they are known."""
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
    """Whether x can be looked at: not while JAX traces it, nor where other hosts have parts."""
    return not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)
