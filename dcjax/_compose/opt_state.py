"""Compose the sub-networks' optimiser states into the global network's."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from dcjax._checks import compare_leaves, dtype_of, leaves_of, path_name, raise_listed, same_kind
from dcjax._compose.compose import check_stack, compose, layout_of
from dcjax._compose.gradient_powers import parameter_of, powers_of
from dcjax._compose.head_weights import head_weights_of, without_diverged
from dcjax._compose.leaf import compose_leaf, rescaled, tile_blocks
from dcjax._compose.stacked import Stacked, is_stacked
from dcjax._layout.layout import LeafLayout, Path


def compose_opt_state(
    optimizer: optax.GradientTransformation,
    opt_state: PyTree,
    params: Stacked,
    *,
    weights: Float[Array | np.ndarray, " K"] | None = None,
) -> PyTree:
    """Return the global network's optimiser state from the K sub-networks' states.

    The state does not compose as the parameters do. With logits z̄ = Σ_k w_k z_k, and where the
    sub-networks agree, the gradient of the global loss is w_k times sub-network k's gradient in the
    body (its blocks reach the loss through w_k z_k), and equal to it in the head (whose blocks hold
    w_k already). An array that grows as the p-th power of the gradients (p = 1 for momenta, 2 for
    Adam's second moments) is composed with the factor w_k^p in the body and 1 in the head; the
    head's bias gets Σ_k w_k times the sub-networks' arrays. p is measured for each array by running
    the optimiser on gradients of 2e-6 to 200 and on multiples of them. A leaf with a factor f in
    the layout has gradients that are 1/f times as large, and its arrays the further factor f^−p.

    First moments off the diagonal are zero: the gradients there have no past. Zero second moments
    beside a large count would make Adam's first step there (1 − β₁)/√(1 − β₂) = 3.2 times the
    learning rate for its defaults. So where p = 2, off-diagonal blocks are filled with the mean of
    the sub-networks' blocks (times w_k²), which is exact if all sub-networks are equal.

    Weight decay that is added to the gradients before a momentum counts as gradient. To start the
    optimiser anew instead, call `optimizer.init(dcjax.compose(params))`.

    Args:
      optimizer: the optax optimiser that made the state, with any states within it.
      opt_state: its state for the sub-networks: `optimizer.init(params)`, or K states stacked, as
        `jax.vmap(optimizer.init)(params)` and `dcjax.training` make them. Of K stacked arrays that
        do not have a parameter's shape, real numbers are averaged; counts are sub-network 0's.
      params: the sub-networks' trained parameters, `stacked["params"]`; only shapes matter.
      weights: the weights that the head is composed with; 1/K each by default.

    Returns:
      The state for `dcjax.compose(params)`, of the structure, shapes and dtypes that the
      optimiser's `init` gives.

    Raises:
      TypeError: `params` is not a `Stacked`, or `optimizer` not an optax optimiser.
      ValueError: the state does not belong to this optimiser and these parameters. Or an array does
        not grow as a power of the gradients (copies of parameters, as in schedule-free methods;
        sums that do not start from zero, as Adagrad's; momenta of clipped gradients, or of
        gradients divided by a root with an epsilon that matters, as in RMSprop with momentum), or
        depends on the gradients of other entries (normalised or clipped by their norm). The
        message lists every such array.

    >>> import dcjax, jax, optax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> params, optimizer = stacked["params"], optax.adam(1e-3)
    >>> state = dcjax.compose_opt_state(optimizer, optimizer.init(params), params)
    >>> state[0].nu["head"]["kernel"].shape
    (32, 10)

    References:
      The derivation is ours. D. P. Kingma, J. Ba, *Adam*, ICLR 2015, for the moments.
    """
    if not isinstance(params, Stacked):
        raise TypeError(
            f"params must be a Stacked, such as stacked['params'], got {type(params).__name__}"
        )
    check_stack(params.tree, layout_of(params))
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(
            f"optimizer must be an optax transformation, such as optax.adam(1e-3), got "
            f"{type(optimizer).__name__}"
        )
    head_weights = head_weights_of(weights, len(params))
    layout, subnets = params.layout, len(params)
    params = jax.eval_shape(lambda params: params, params)
    whole = jax.eval_shape(lambda params: optimizer.init(compose(params)), params)
    expected = leaves_of(whole, "optimiser's own state")
    leaves = _state_leaves(opt_state, expected)
    powers = powers_of(optimizer, params)
    if len(expected) != len(powers):
        raise ValueError(
            f"the optimiser's state has {len(powers)} arrays for a sub-network and {len(expected)} "
            "for the global network: it cannot be composed, start it anew"
        )
    compositions, wrong = [], []
    for (path, new), power in zip(expected.items(), powers, strict=True):
        parameter = parameter_of(path, layout)
        rule = layout.by_path[parameter] if parameter is not None else None
        if rule is not None and new.shape != rule.global_shape(subnets):
            rule = None
        composition = _Composition(new.shape, new.dtype, rule, power)
        compositions.append(composition)
        if problem := _problem(leaves[path], composition, parameter, subnets):
            wrong.append(f"{path_name(path)}: {problem}")
    raise_listed(
        "this optimiser's state cannot be composed:",
        wrong,
        "Start it anew: optimizer.init(dcjax.compose(params))",
    )
    arrays = [jnp.asarray(leaves[path]) for path in expected]
    if weights is not None:
        # Arrays of one state for all sub-networks have no axis of sub-networks.
        each = {
            i: array
            for i, (array, composition) in enumerate(zip(arrays, compositions, strict=True))
            if composition.rule is not None or array.shape != composition.shape
        }
        for i, array in without_diverged(each, head_weights).items():
            arrays[i] = array
    composed = _composed(
        arrays,
        head_weights,
        compositions=tuple(compositions),
        subnets=subnets,
    )
    return jax.tree.unflatten(jax.tree.structure(whole), composed)


def _state_leaves(opt_state: PyTree, expected: dict[Path, Any]) -> dict[Path, Any]:
    """Return the state's leaves by the paths of the global network's state."""
    leaves_of(opt_state, "optimiser's state")  # raises if it cannot be read
    plain = jax.tree.map(
        lambda node: node.tree if is_stacked(node) else node, opt_state, is_leaf=is_stacked
    )
    leaves, wrong = compare_leaves(plain, dict.fromkeys(expected, ...), "optimiser's state")
    raise_listed(
        "this is not a state of this optimiser for these parameters; wrong arrays:",
        wrong,
        "If it masks parameters by their number of axes, make it with jax.vmap(optimizer.init)",
    )
    return leaves


class _Composition(NamedTuple):
    """The static part of composing one array of the state.

    Attributes:
      shape: the array's shape for the global network.
      dtype: its dtype there.
      rule: how its parameter is composed; None unless it has a parameter's shape.
      power: of the gradient, or the reason against one.
    """

    shape: tuple[int, ...]
    dtype: Any
    rule: LeafLayout | None
    power: int | str


def _problem(leaf: Array, composition: _Composition, parameter: Path | None, subnets: int) -> str:
    """Say why an array cannot be composed; return "" if it can."""
    shape, dtype, rule, power = composition
    fitting = [shape, (subnets, *shape)] if rule is None else [(subnets, *rule.narrow_shape)]
    if (got := jnp.shape(leaf)) not in fitting:
        return f"expected shape {' or '.join(map(str, fitting))}, got {got}"
    if not same_kind(dtype_of(leaf), dtype):
        return f"expected {dtype}, got {dtype_of(leaf)}"
    if rule is not None:
        return power if isinstance(power, str) else ""
    if parameter is not None and isinstance(power, int) and power:
        return f"it belongs to a parameter, and its shape {shape} does not"
    return ""


# One program for all arrays: one each would compile for every shape.
@functools.partial(jax.jit, static_argnames=("compositions", "subnets"))
def _composed(
    leaves: list[Array],
    head_weights: Float[Array | np.ndarray, " K"],
    *,
    compositions: tuple[_Composition, ...],
    subnets: int,
) -> list[Array]:
    """Compose all arrays."""
    return [
        _composed_leaf(leaf, head_weights, composition, subnets)
        for leaf, composition in zip(leaves, compositions, strict=True)
    ]


def _composed_leaf(
    leaf: Array,
    head_weights: Float[Array | np.ndarray, " K"],
    composition: _Composition,
    subnets: int,
) -> Array:
    rule = composition.rule
    if rule is None:
        if leaf.shape != composition.shape:
            real = jnp.issubdtype(leaf.dtype, jnp.floating)
            leaf = jnp.mean(leaf, axis=0) if real else leaf[0]
        # Random keys cannot be cast.
        return leaf if leaf.dtype == composition.dtype else leaf.astype(composition.dtype)
    assert not isinstance(composition.power, str)
    # A leaf that is f times as large has gradients that are 1/f times as large.
    leaf = rescaled(leaf, rule.factor**-composition.power)
    factors = head_weights**composition.power
    old = None
    if composition.power == 2 and rule.has_off_diagonal:
        mean = jnp.tensordot(factors, leaf, 1).astype(leaf.dtype) / subnets
        old = tile_blocks(mean, layout=rule, subnets=subnets)
    own = None if rule.head else factors
    whole = compose_leaf(leaf, old, head_weights, own, layout=rule, subnets=subnets)
    return whole.astype(composition.dtype)
