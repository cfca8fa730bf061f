"""Composing the sub-networks' optimiser states into the global network's."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dcjax._blocks import compose_leaf, spread_leaf
from dcjax._checks import array_fault, dtype_of, leaves_of, same_kind
from dcjax._compose import check_stack, compose, layout_of
from dcjax._layout import Layout, LeafLayout, Path, path_of
from dcjax._shares import shares_of
from dcjax._stacked import Stacked

PyTree = Any


def compose_opt_state(
    optimizer: optax.GradientTransformation,
    opt_state: PyTree,
    params: Stacked,
    *,
    weights: Float[Array, " K"] | None = None,
) -> PyTree:
    """The global network's optimiser state from the K sub-networks' states.

    Not the parameters' map. With the logits z̄ = Σ_k w_k z_k, where the sub-networks agree the
    gradient of the global cost is w_k times sub-network k's own in the body (its blocks reach the
    cost through w_k z_k), and equal to it in the head (whose blocks hold w_k already). A part of
    the state that grows as the p-th power of the gradients (p = 1 for momenta, 2 for Adam's second
    moments) is therefore composed with the factor w_k^p in the body and 1 in the head; what all
    share (the head's bias) gets Σ_k w_k times the sub-networks' own. p is measured, for each part,
    by running the optimiser on gradients of 2e-6 to 200 and on multiples of them.

    Off the diagonal first moments are zero, for the gradients there have no past. Zero second
    moments beside a large count would make Adam's first step there (1 − β₁)/√(1 − β₂) = 3.2 times
    the rate for its defaults: where p = 2 they are filled with the mean of the sub-networks' (times
    w_k²) in the same place of their blocks, which is exact where all sub-networks are equal.

    Weight decay that is added to the gradients before a momentum counts as part of them. To start
    the optimiser anew instead: `optimizer.init(dcjax.compose(params))`; do so too after
    `compose(head="sum")`, whose gradients have nothing to do with the sub-networks'.

    Args:
      optimizer: the optax optimiser that made the state, with any states within it.
      opt_state: its state for the sub-networks: `optimizer.init(params)`, or one for each of them,
        stacked, as `jax.vmap(optimizer.init)(params)` and `dcjax.training` make them. Counts and
        what else is no array of a parameter's shape are then sub-network 0's, of real numbers the
        mean.
      params: the sub-networks' parameters that are trained, `stacked["params"]`; only shapes count.
      weights: those that the head is composed with; 1/K each by default.

    Returns:
      The state for `dcjax.compose(params)`, of the structure, shapes and dtypes that the
      optimiser's `init` gives.

    Raises:
      TypeError: `params` is no `Stacked`, or `optimizer` no optax optimiser.
      ValueError: the state is not one of this optimiser and these parameters, or a part of it is no
        power of the gradients (copies of parameters, as in schedule-free methods; sums that do not
        start from zero, as Adagrad's; momenta of what is clipped, or divided by something beside an
        epsilon that counts, as in RMSprop with a momentum) or depends on those of other entries
        (gradients normalised or clipped by their norm); lists every such part.

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
            f"params is a Stacked, such as stacked['params'], got {type(params).__name__}"
        )
    check_stack(params.tree, layout_of(params), abstract=True)
    keys = [
        "/".join(path)
        for path, leaf in leaves_of(params.tree, "tree of parameters").items()
        if jnp.issubdtype(dtype_of(leaf), jax.dtypes.prng_key)
    ]
    if keys:
        raise ValueError(f"params are numbers, which are trained; random keys: {', '.join(keys)}")
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(f"optimizer is an optax optimiser, got {type(optimizer).__name__}")
    shares = shares_of("mean", weights, len(params))
    params = jax.eval_shape(lambda params: params, params)
    whole = jax.eval_shape(lambda params: optimizer.init(compose(params)), params)
    expected = leaves_of(whole, "optimiser's own state")
    leaves = _state_leaves(opt_state, expected)
    powers = _powers(optimizer, params)
    if len(expected) != len(powers):
        raise ValueError(
            f"the optimiser's state has {len(powers)} arrays for a sub-network and {len(expected)} "
            "for the global network: it cannot be composed, start it anew"
        )
    parts = [
        _Part(
            path,
            new,
            leaves[path],
            _rule(path, new.shape, params.layout),
            power,
            _parameter_of(path, params.layout) is not None,
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
    return jax.tree.unflatten(
        jax.tree.structure(whole), [part.composed(shares, len(params)) for part in parts]
    )


def _state_leaves(opt_state: PyTree, expected: dict[Path, Any]) -> dict[Path, Any]:
    """The state's leaves by the paths of the global network's, which has no `Stacked`."""

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


class _Part(NamedTuple):
    """One array of the state.

    Attributes:
      path: its place.
      new: its shape and dtype for the global network.
      leaf: the sub-networks'.
      rule: how the parameter is composed that it belongs to; None if it has not the shape of any.
      power: of the gradient, or why there is none.
      of_parameter: whether its path ends with a parameter's, whatever its shape.
    """

    path: Path
    new: jax.ShapeDtypeStruct
    leaf: Array
    rule: LeafLayout | None
    power: int | str
    of_parameter: bool

    def problem(self, subnets: int) -> str:
        """Why it cannot be composed, or nothing."""
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

    def composed(self, shares: Float[Array, " K"], subnets: int) -> Array:
        """The global network's."""
        leaf, rule = jnp.asarray(self.leaf), self.rule
        if rule is None:
            if leaf.shape == self.new.shape:
                return _as(self.new.dtype, leaf)
            real = jnp.issubdtype(leaf.dtype, jnp.floating)
            return _as(self.new.dtype, jnp.mean(leaf, axis=0) if real else leaf[0])
        assert not isinstance(self.power, str)
        factors = shares**self.power
        old = None
        if self.power == 2 and rule.has_off_diagonal:
            mean = jnp.tensordot(factors, leaf, 1).astype(leaf.dtype) / subnets
            old = spread_leaf(mean, layout=rule, subnets=subnets)
        own = None if rule.head else factors
        whole = compose_leaf(leaf, old, shares, own, layout=rule, subnets=subnets)
        return whole.astype(self.new.dtype)


def _as(dtype: Any, x: Array) -> Array:
    """Of another precision where it has to be; random keys have but one."""
    return x if x.dtype == dtype else x.astype(dtype)


def _parameter_of(path: Path, layout: Layout) -> Path | None:
    """The path of the parameter that ends this one."""
    return next((path[i:] for i in range(len(path)) if path[i:] in layout.by_path), None)


def _rule(path: Path, shape: tuple[int, ...], layout: Layout) -> LeafLayout | None:
    """The layout of the parameter whose path ends this one, and whose shape this is."""
    parameter = _parameter_of(path, layout)
    rule = None if parameter is None else layout.by_path[parameter]
    return rule if rule and shape == rule.global_shape(layout.subnets) else None


# Gradients of the probe, one a step; more steps than gradients are usually accumulated for.
_PROBE = (1.0, -0.5, 2.0, 1.5, -1.0, 0.5, 1.0, 3.0, -2.0, 1.0)
_FACTOR = 64.0


class _Probe(NamedTuple):
    """Parameters of one value throughout, and what the gradients of `_PROBE` are multiplied by."""

    parameters: float
    gradients: float


# Pairs of which the second has gradients `_FACTOR` times as large. With parameters of zero (so that
# weight decay, which is no gradient, is none) over many sizes, so that limits show; with parameters
# of one, so that what starts as a copy of them shows; and with parameters as many times as large,
# so that what is in proportion to them shows, and decay that is added to the gradients passes.
_PAIRS = (
    (_Probe(0.0, _FACTOR**-3), _Probe(0.0, _FACTOR**-2)),
    (_Probe(0.0, _FACTOR**-2), _Probe(0.0, _FACTOR**-1)),
    (_Probe(0.0, _FACTOR**-1), _Probe(0.0, 1.0)),
    (_Probe(0.0, 1.0), _Probe(0.0, _FACTOR)),
    (_Probe(1.0, 1.0), _Probe(1.0, _FACTOR)),
    (_Probe(1.0, 1.0), _Probe(_FACTOR, _FACTOR)),
)


def _powers(optimizer: optax.GradientTransformation, params: Stacked) -> list[int | str]:
    """The power of the gradients in every array of the state, or why there is none.

    Measured on parameters with axes of two entries: by gradients and multiples of them; and by
    multiples of some entries alone, which must leave the state of the others as it is.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params.tree)
    paths = [path_of(path) for path, _ in leaves]
    shapes = [(2,) * len(params.layout.by_path[path].narrow_shape) for path in paths]

    def tree(value: float, scaled: Callable[[int], Any] = lambda _: 1.0) -> PyTree:
        arrays = [
            jnp.asarray(np.broadcast_to(value * scaled(i), shape), leaf.dtype)
            for i, (shape, (_, leaf)) in enumerate(zip(shapes, leaves, strict=True))
        ]
        return jax.tree.unflatten(jax.tree.structure(params.tree), arrays)

    update = jax.jit(lambda gradient, state, at: optimizer.update(gradient, state, at)[1])

    def history(probe: _Probe, scaled: Callable[[int], Any] = lambda _: 1.0) -> list[list[Any]]:
        at = tree(probe.parameters)
        state, states = optimizer.init(at), []
        for gradient in _PROBE:
            state = update(tree(probe.gradients * gradient, scaled), state, at)
            states.append(jax.device_get(jax.tree.leaves(state)))
        return [list(arrays) for arrays in zip(*states, strict=True)]

    with jax.ensure_compile_time_eval():
        first = optimizer.init(tree(1.0))
        probes = {probe: history(probe) for pair in _PAIRS for probe in pair}
        powers = [
            _power(leaf, [(probes[low][i], probes[high][i]) for low, high in _PAIRS])
            for i, leaf in enumerate(jax.tree.leaves(first))
        ]
        owners = [_parameter_of(path, params.layout) for path in leaves_of(first, "state")]
        base = probes[_Probe(0.0, 1.0)]
        for scaled in _patterns(shapes):
            other = history(_Probe(0.0, 1.0), scaled)
            for i, owner in enumerate(owners):
                if owner is None or isinstance(powers[i], str):
                    continue
                parameter = paths.index(owner)
                left = np.broadcast_to(scaled(parameter) == 1, shapes[parameter])
                if not _same(base[i], other[i], left):
                    powers[i] = "it depends on the gradients of other parameters or entries"
    return powers


def _patterns(shapes: Sequence[tuple[int, ...]]) -> list[Callable[[int], Any]]:
    """Factors of the gradients: of some leaves (any two differ in one), or of an entry of each."""

    def of_leaves(bit: int, value: int) -> Callable[[int], Any]:
        return lambda i: _FACTOR if i >> bit & 1 == value else 1.0

    def of_entry(i: int) -> Any:
        factors = np.ones(shapes[i])
        factors[(0,) * factors.ndim] = _FACTOR
        return factors

    bits = range(max(1, (len(shapes) - 1).bit_length()))
    return [*(of_leaves(bit, value) for bit in bits for value in (0, 1)), of_entry]


def _same(one: Sequence[Any], other: Sequence[Any], where: np.ndarray) -> bool:
    """Whether the arrays of all steps agree in these entries, if they have any such."""
    return all(
        np.shape(a) != where.shape or np.allclose(a[where], b[where], rtol=1e-3)
        for a, b in zip(one, other, strict=True)
    )


def _power(first: Any, runs: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> int | str:
    """The one power that explains all, or why there is none."""
    if not jnp.issubdtype(jnp.result_type(first), jnp.inexact):
        return 0
    if np.any(np.asarray(first) != 0):
        return "it does not start from zero, so that it is no average of gradients alone"
    found = set()
    for low, high in runs:
        for a, b in zip(map(_magnitude, low), map(_magnitude, high), strict=True):
            if a > 0 and b > 0:
                found.add(math.log(b / a, _FACTOR))
    if not found:
        return f"it stays zero for {len(_PROBE)} steps, so that it is not known what it holds"
    power = round(min(found))
    if max(abs(value - power) for value in found) > 0.05:
        return "it is no power of the gradients"
    return power


def _magnitude(leaf: Any) -> float:
    """The largest entry; of what is no real number (counts, keys), nothing."""
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return 0.0
    kind = np.complex128 if np.iscomplexobj(leaf) else np.float64
    return float(np.max(np.abs(np.asarray(leaf, kind)), initial=0.0))
