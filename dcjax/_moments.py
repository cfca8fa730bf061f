"""Composing the sub-networks' optimiser states into the global network's."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dcjax._blocks import compose_leaf, spread_leaf
from dcjax._layout import LeafLayout, path_of
from dcjax._shares import shares_of
from dcjax._stacked import Stacked

PyTree = Any

# The fields of optax's states that hold something of the parameters' shape, and the power of the
# gradient that it is an average of.
MOMENTS: Mapping[str, int] = MappingProxyType(
    {"trace": 1, "mu": 1, "ema": 1, "acc_grads": 1, "nu": 2, "nu_max": 2, "sum_of_squares": 2}
)


def compose_opt_state(
    opt_state: PyTree,
    *,
    weights: Float[Array, " K"] | None = None,
    moments: Mapping[str, int] = MOMENTS,
) -> PyTree:
    """The global network's optimiser state from the K sub-networks' states.

    Not the parameters' map. With the logits z̄ = Σ_k w_k z_k, where the sub-networks agree the
    gradient of the global cost is w_k times sub-network k's own in the body (its blocks reach the
    cost through w_k z_k), and equal to it in the head (whose blocks hold w_k already). So first
    moments are composed with the factor w_k in the body and 1 in the head, second moments with
    w_k² and 1; what all share (the head's bias) gets Σ_k w_k times the sub-networks' moments.

    Off the diagonal first moments are zero, for the gradients there have no past. Zero second
    moments beside a large count would make Adam's first step there 1 − β₁ over √(1 − β₂), 3.2 times
    the rate for its defaults: they are filled with the mean of the sub-networks' (composed) second
    moments in the same place of their blocks, which is exact where all sub-networks are equal.
    Exact for averages that start from zero, of gradients alone: weight decay inside a momentum, or
    Adagrad's first value, are scaled along. To start the optimiser anew instead:
    `optimizer.init(dcjax.compose(params))`.

    Counts, keys and what else is no moment must be a scalar, or K of them (from sub-networks with a
    state each, as `dcjax.training` has them): then sub-network 0's is taken, of real numbers the
    mean.

    Args:
      opt_state: an optax state made from a `Stacked`: `optimizer.init(stacked["params"])`.
      weights: those that the head is composed with; 1/K each by default.
      moments: the power of the gradient in each field of a state: optax's usual ones by default.
        For others add them: `{**dcjax.MOMENTS, "field": 1}`.

    Returns:
      The state for `dcjax.compose(params)`, as from the same optimiser's `init`, dtypes kept.

    Raises:
      ValueError: a field is not in `moments`, something has neither a layout nor the leading axis
        K, or shapes disagree with the layout.

    >>> import dcjax, jax, optax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> optimizer = optax.adam(1e-3)
    >>> state = dcjax.compose_opt_state(optimizer.init(stacked["params"]))
    >>> state[0].nu["head"]["kernel"].shape
    (32, 10)

    References:
      The derivation is ours. D. P. Kingma, J. Ba, *Adam*, ICLR 2015, for the moments.
    """
    nodes = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_stacked)
    counts = {len(node) for _, node in nodes if _is_stacked(node)}
    if len(counts) > 1:
        raise ValueError(f"the state is of different numbers of sub-networks: {sorted(counts)}")
    subnets = counts.pop() if counts else None

    def node(path: Any, node: Any) -> Any:
        if not _is_stacked(node):
            return _one_of(path, node, subnets)
        shares = shares_of("mean", weights, len(node))
        return _compose_moment(node, shares, _power(path, moments))

    return jax.tree_util.tree_map_with_path(node, opt_state, is_leaf=_is_stacked)


def _is_stacked(node: Any) -> bool:
    return isinstance(node, Stacked)


def _power(path: Any, moments: Mapping[str, int]) -> int:
    """The power of the gradient in the innermost named field above a node."""
    field = next((key.name for key in reversed(path) if hasattr(key, "name")), "")
    if field not in moments:
        raise ValueError(
            f"{jax.tree_util.keystr(path) or 'the state'}: expected one of the fields "
            f"{sorted(moments)}, got {field!r}, of which it is not known what it holds. Add it: "
            'moments={**dcjax.MOMENTS, "'
            f'{field}": 1}} for an average of gradients, 2 for one of their squares'
        )
    return moments[field]


def _compose_moment(moment: Stacked, shares: Float[Array, " K"], power: int) -> PyTree:
    layout, subnets = moment.layout, len(moment)

    def at(path: Any, leaf: Array) -> Array:
        rule = layout.by_path.get(path_of(path))
        shape = jnp.shape(leaf)
        if rule is None or shape != (subnets, *rule.narrow_shape):
            raise ValueError(
                f"{'/'.join(path_of(path))}: expected a moment of the parameter's shape, "
                f"{rule and (subnets, *rule.narrow_shape)}, got {shape}. States of other shapes "
                "(Adafactor) have no composition: start anew with optimizer.init(compose(params))"
            )
        factors = None if rule.head else shares**power
        old = _off_diagonal(leaf, shares**power, rule, subnets) if power == 2 else None
        return compose_leaf(leaf, old, shares, factors, layout=rule, subnets=subnets)

    return jax.tree_util.tree_map_with_path(at, moment.tree)


def _off_diagonal(
    leaf: Array, factors: Float[Array, " K"], rule: LeafLayout, subnets: int
) -> Array | None:
    """A global leaf with the sub-networks' mean in every block."""
    if not rule.has_off_diagonal:
        return None
    mean = jnp.tensordot(factors, leaf, 1).astype(leaf.dtype) / subnets
    return spread_leaf(mean, layout=rule, subnets=subnets)


def _one_of(path: Any, leaf: Any, subnets: int | None) -> Any:
    """What is no moment: common to all sub-networks, or one for each."""
    shape = jnp.shape(leaf)
    if shape == ():
        return leaf
    if len(shape) > 1 or (subnets is not None and shape != (subnets,)):
        raise ValueError(
            f"{jax.tree_util.keystr(path)}: expected a scalar, K scalars or a Stacked, got shape "
            f"{shape}. Make the optimiser's state from a Stacked: optimizer.init(stacked['params'])"
        )
    real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.mean(leaf, axis=0) if real else leaf[0]
