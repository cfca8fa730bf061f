"""Compose the sub-networks' optimiser states into the global network's."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from dcjax._checks import array_fault, dtype_of, leaves_of, same_kind
from dcjax._compose.compose import check_stack, compose, layout_of
from dcjax._compose.gradient_powers import parameter_of, powers_of
from dcjax._compose.head_weights import head_weights_of
from dcjax._compose.leaf import compose_leaf, tile_blocks
from dcjax._compose.stacked import Stacked
from dcjax._layout.layout import Layout, LeafLayout, Path


def compose_opt_state(
    optimizer: optax.GradientTransformation,
    opt_state: PyTree,
    params: Stacked,
    *,
    weights: Float[Array, " K"] | None = None,
) -> PyTree:
    """Return the global network's optimiser state from the K sub-networks' states.

    The state does not compose as the parameters do. With logits z̄ = Σ_k w_k z_k, and where the
    sub-networks agree, the gradient of the global loss is w_k times sub-network k's gradient in the
    body (its blocks reach the loss through w_k z_k), and equal to it in the head (whose blocks hold
    w_k already). An array that grows as the p-th power of the gradients (p = 1 for momenta, 2 for
    Adam's second moments) is composed with the factor w_k^p in the body and 1 in the head; the
    head's bias gets Σ_k w_k times the sub-networks' arrays. p is measured for each array by running
    the optimiser on gradients of 2e-6 to 200 and on multiples of them.

    First moments off the diagonal are zero: the gradients there have no past. Zero second moments
    beside a large count would make Adam's first step there (1 − β₁)/√(1 − β₂) = 3.2 times the
    learning rate for its defaults. So where p = 2, off-diagonal blocks are filled with the mean of
    the sub-networks' blocks (times w_k²), which is exact if all sub-networks are equal.

    Weight decay that is added to the gradients before a momentum counts as gradient. To start the
    optimiser anew instead, call `optimizer.init(dcjax.compose(params))`. Do so after
    `compose(head="sum")`, whose gradients are not multiples of the sub-networks'.

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
    check_stack(params.tree, layout_of(params), abstract=True)
    keys = [
        "/".join(path)
        for path, leaf in leaves_of(params.tree, "tree of parameters").items()
        if jnp.issubdtype(dtype_of(leaf), jax.dtypes.prng_key)
    ]
    if keys:
        raise ValueError(f"params must be numbers; these are random keys: {', '.join(keys)}")
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(f"optimizer must be an optax optimiser, got {type(optimizer).__name__}")
    head_weights = head_weights_of("mean", weights, len(params))
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
    parts = [
        _StateArray(
            path,
            new,
            leaves[path],
            _rule(path, new.shape, params.layout),
            power,
            parameter_of(path, params.layout) is not None,
        )
        for (path, new), power in zip(expected.items(), powers, strict=True)
    ]
    problems = [("/".join(part.path), part.problem(len(params))) for part in parts]
    wrong = [f"{path}: {problem}" for path, problem in problems if problem]
    if wrong:
        raise ValueError(
            "this optimiser's state cannot be composed:\n  "
            + "\n  ".join(wrong)
            + "\nStart it anew: optimizer.init(dcjax.compose(params))"
        )
    composed = _composed(
        [jnp.asarray(part.leaf) for part in parts],
        head_weights,
        compositions=tuple(part.composition for part in parts),
        subnets=len(params),
    )
    return jax.tree.unflatten(jax.tree.structure(whole), composed)


def _state_leaves(opt_state: PyTree, expected: dict[Path, Any]) -> dict[Path, Any]:
    """Return the state's leaves by the paths of the global network's state."""

    def is_stacked(node: Any) -> bool:
        return isinstance(node, Stacked)

    leaves_of(opt_state, "optimiser's state")  # that it can be read
    plain = jax.tree.map(
        lambda node: node.tree if is_stacked(node) else node, opt_state, is_leaf=is_stacked
    )
    leaves = leaves_of(plain, "optimiser's state")
    wrong = [f"{'/'.join(path)}: missing" for path in expected if path not in leaves]
    wrong += [
        f"{'/'.join(path)}: not in the optimiser's" for path in leaves if path not in expected
    ]
    wrong += [
        f"{'/'.join(path)} {array_fault(leaf)}"
        for path, leaf in leaves.items()
        if array_fault(leaf)
    ]
    if wrong:
        raise ValueError(
            "expected a state of this optimiser for these parameters, and these arrays of it are "
            "wrong:\n  " + "\n  ".join(wrong) + "\nIf it masks parameters by their number of axes, "
            "make it with jax.vmap(optimizer.init)"
        )
    return leaves


class _StateArray(NamedTuple):
    """One array of the optimiser's state.

    Attributes:
      path: its place in the state.
      new: its shape and dtype for the global network.
      leaf: the sub-networks' array.
      rule: how its parameter is composed; None unless it has a parameter's shape.
      power: of the gradient, or the reason against one.
      of_parameter: whether its path ends with a parameter's path.
    """

    path: Path
    new: jax.ShapeDtypeStruct
    leaf: Array
    rule: LeafLayout | None
    power: int | str
    of_parameter: bool

    def problem(self, subnets: int) -> str:
        """Say why it cannot be composed; return "" if it can."""
        got = jnp.shape(self.leaf)
        if self.rule is not None:
            fitting = [(subnets, *self.rule.narrow_shape)]
        else:
            fitting = [self.new.shape, (subnets, *self.new.shape)]
        if got not in fitting:
            return f"expected shape {' or '.join(map(str, fitting))}, got {got}"
        if not same_kind(dtype_of(self.leaf), self.new.dtype):
            return f"expected {self.new.dtype}, got {dtype_of(self.leaf)}"
        if self.rule is not None:
            return self.power if isinstance(self.power, str) else ""
        if self.of_parameter and isinstance(self.power, int) and self.power:
            return f"it belongs to a parameter, and its shape {self.new.shape} does not"
        return ""

    @property
    def composition(self) -> "_Composition":
        """How it is composed; defined for arrays without a problem."""
        return _Composition(self.new.shape, self.new.dtype, self.rule, self.power)


class _Composition(NamedTuple):
    """The static part of a `_StateArray`, from which its composition is compiled."""

    shape: tuple[int, ...]
    dtype: Any
    rule: LeafLayout | None
    power: int | str


# One program for all arrays: one each would compile for every shape.
@functools.partial(jax.jit, static_argnames=("compositions", "subnets"))
def _composed(
    leaves: list[Array],
    head_weights: Float[Array, " K"],
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
    leaf: Array, head_weights: Float[Array, " K"], composition: _Composition, subnets: int
) -> Array:
    rule = composition.rule
    if rule is None:
        if leaf.shape == composition.shape:
            return _as(composition.dtype, leaf)
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return _as(composition.dtype, jnp.mean(leaf, axis=0) if real else leaf[0])
    assert not isinstance(composition.power, str)
    factors = head_weights**composition.power
    old = None
    if composition.power == 2 and rule.has_off_diagonal:
        mean = jnp.tensordot(factors, leaf, 1).astype(leaf.dtype) / subnets
        old = tile_blocks(mean, layout=rule, subnets=subnets)
    own = None if rule.head else factors
    whole = compose_leaf(leaf, old, head_weights, own, layout=rule, subnets=subnets)
    return whole.astype(composition.dtype)


def _as(dtype: Any, x: Array) -> Array:
    """Cast x if its dtype differs; random keys cannot be cast."""
    return x if x.dtype == dtype else x.astype(dtype)


def _rule(path: Path, shape: tuple[int, ...], layout: Layout) -> LeafLayout | None:
    """Return the layout of the parameter with which the path ends, if the shape is its too."""
    parameter = parameter_of(path, layout)
    rule = None if parameter is None else layout.by_path[parameter]
    return rule if rule and shape == rule.global_shape(layout.subnets) else None
