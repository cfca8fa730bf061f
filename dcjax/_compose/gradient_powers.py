"""The power of the gradients in every array of an optimiser's state, found by running it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from dcjax._checks import leaves_of
from dcjax._compose.stacked import Stacked
from dcjax._layout.layout import Layout, Path, path_of

Factors = Callable[[int], Any]
"""A function from a leaf's number to the factor on its gradient: a number, or one an entry."""

# The probe's gradients, one a step: more steps than people accumulate gradients for.
_PROBE = (1.0, -0.5, 2.0, 1.5, -1.0, 0.5, 1.0, 3.0, -2.0, 1.0)
_FACTOR = 64.0


# Two probes each: the value of all parameters, and the factor on the gradients of `_PROBE`. In each
# pair the second probe has gradients `_FACTOR` times as large. Zero parameters turn weight decay
# off, and many sizes reveal clipping. Parameters of one reveal copies of them. Parameters that grow
# with the gradients reveal proportions to them, and let decay in the gradients pass.
_PAIRS = [((0.0, _FACTOR**n), (0.0, _FACTOR ** (n + 1))) for n in (-3, -2, -1, 0)] + [
    ((1.0, 1.0), (1.0, _FACTOR)),
    ((1.0, 1.0), (_FACTOR, _FACTOR)),
]


def parameter_of(path: Path, layout: Layout) -> Path | None:
    """Return the parameter's path with which this path ends, or None."""
    return next((path[i:] for i in range(len(path)) if path[i:] in layout.by_path), None)


def powers_of(optimizer: optax.GradientTransformation, params: Stacked) -> list[int | str]:
    """Return the power of the gradients in every array of the state, or the reason against one.

    The optimiser runs on parameters with axes of two entries. It gets gradients and multiples of
    them, then multiples of some entries alone, which must not change the state of the others.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params.tree)
    paths = [path_of(path) for path, _ in leaves]
    shapes = [(2,) * len(params.layout.by_path[path].narrow_shape) for path in paths]

    def tree(value: float, scaled: Factors = lambda leaf: 1.0) -> PyTree:
        arrays = [
            jnp.asarray(np.broadcast_to(value * scaled(i), shape), leaf.dtype)
            for i, (shape, (_, leaf)) in enumerate(zip(shapes, leaves, strict=True))
        ]
        return jax.tree.unflatten(jax.tree.structure(params.tree), arrays)

    update = jax.jit(lambda gradient, state, at: optimizer.update(gradient, state, at)[1])

    def history(probe: tuple[float, float], scaled: Factors = lambda leaf: 1.0) -> list[list[Any]]:
        parameters, gradients = probe
        at = tree(parameters)
        state, states = optimizer.init(at), []
        for gradient in _PROBE:
            state = update(tree(gradients * gradient, scaled), state, at)
            states.append(jax.device_get(jax.tree.leaves(state)))
        return [list(arrays) for arrays in zip(*states, strict=True)]

    with jax.ensure_compile_time_eval():
        first = optimizer.init(tree(1.0))
        probes = {probe: history(probe) for pair in _PAIRS for probe in pair}
        powers = [
            _power(leaf, [(probes[low][i], probes[high][i]) for low, high in _PAIRS])
            for i, leaf in enumerate(jax.tree.leaves(first))
        ]
        owners = [parameter_of(path, params.layout) for path in leaves_of(first, "state")]
        base = probes[0.0, 1.0]
        for scaled in _patterns(shapes):
            other = history((0.0, 1.0), scaled)
            for i, owner in enumerate(owners):
                if owner is None or isinstance(powers[i], str):
                    continue
                parameter = paths.index(owner)
                left = np.broadcast_to(scaled(parameter) == 1, shapes[parameter])
                if not _same(base[i], other[i], left):
                    powers[i] = "it depends on the gradients of other parameters or entries"
    return powers


def _patterns(shapes: Sequence[tuple[int, ...]]) -> list[Factors]:
    """Return factors for some leaves (any two leaves differ in one), and for an entry of each."""

    def of_leaves(bit: int, value: int) -> Factors:
        return lambda i: _FACTOR if i >> bit & 1 == value else 1.0

    def of_entry(i: int) -> Any:
        factors = np.ones(shapes[i])
        factors[(0,) * factors.ndim] = _FACTOR
        return factors

    bits = range(max(1, (len(shapes) - 1).bit_length()))
    return [*(of_leaves(bit, value) for bit in bits for value in (0, 1)), of_entry]


def _same(one: Sequence[Any], other: Sequence[Any], where: np.ndarray) -> bool:
    """Tell whether the arrays of all steps agree in these entries, if their shape has them."""
    return all(
        np.shape(a) != where.shape or np.allclose(a[where], b[where], rtol=1e-3)
        for a, b in zip(one, other, strict=True)
    )


def _power(first: Any, runs: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> int | str:
    """Return the one power that explains all runs, or the reason against one."""
    if not jnp.issubdtype(jnp.result_type(first), jnp.inexact):
        return 0
    if np.any(np.asarray(first) != 0):
        return "it does not start from zero, so it is not an average of gradients alone"
    found = {
        math.log(b / a, _FACTOR)
        for low, high in runs
        for a, b in zip(map(_magnitude, low), map(_magnitude, high), strict=True)
        if a > 0 and b > 0
    }
    if not found:
        return f"it stays zero for {len(_PROBE)} steps, so its power cannot be measured"
    power = round(min(found))
    if max(abs(value - power) for value in found) > 0.05:
        return "it does not grow as a power of the gradients"
    return power


def _magnitude(array: Any) -> float:
    """Return the largest magnitude of an entry."""
    return float(np.max(np.abs(np.asarray(array, np.complex128)), initial=0.0))
