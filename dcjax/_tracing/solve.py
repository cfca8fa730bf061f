"""The solve loop: from two networks to the layout of their variables."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import PyTree

from dcjax._checks import leaves_of
from dcjax._layout.layout import Layout, LeafLayout, Path
from dcjax._layout.order import Order, Run
from dcjax._tracing.broadcasts import with_broadcasts
from dcjax._tracing.errors import NotSeparableError
from dcjax._tracing.factors import ONE, Factors, Scale
from dcjax._tracing.unify import SUBNETS, Orders, Size, Units
from dcjax._tracing.value import Axis, Value
from dcjax._tracing.walk import Tap, Walk

_UNUSED = (
    "no result of the traced calls depends on it; if it is a head's kernel, its blocks have to be "
    "divided by K"
)
_RESULT = "the network's result"
_TRACE_IT = (
    'trace the call that uses it, too: calls=[{"train": True}] or calls=[{"method": …}] of '
    "dcjax.layout, dcjax.init and dcjax.verify, a further result of layout_of_functions' functions"
)


class Separation(NamedTuple):
    """Both networks as jaxprs, the layout of the variables, and the arrays in between.

    Attributes:
      results: the shapes of both networks' results.
    """

    layout: Layout
    narrow: jex.ClosedJaxpr
    wide: jex.ClosedJaxpr
    results: tuple[PyTree, PyTree]
    taps: dict[tuple[int, ...], Tap]
    orders: Orders
    factors: Factors
    lines: bool


def separate(
    narrow: Callable[..., Any],
    wide: Callable[..., Any],
    narrow_args: Sequence[PyTree],
    wide_args: Sequence[PyTree],
    subnets: int,
    lines: bool = False,
) -> Separation:
    """Trace two networks, called with (variables, *inputs), and find the layout of the variables.

    Growing axes of the inputs hold the sub-networks' inputs side by side, as `samples.join` makes
    them. Only the shapes and dtypes of the arguments are used. Violations tell their `lines`, if
    the networks' modules do not name their operations.

    Raises:
      NotSeparableError: the global network cannot compute what the sub-networks compute.
      ValueError: the two trees of variables differ in structure, or the inputs in number or rank.
      TypeError: the network has no variables, or no results.
    """
    program, result = jax.make_jaxpr(narrow, return_shape=True)(*narrow_args)
    wide_program, wide_result = jax.make_jaxpr(wide, return_shape=True)(*wide_args)
    programs = program, wide_program
    leaves = _pair("variables", narrow_args[0], wide_args[0])
    inputs = _pair("inputs", narrow_args[1:], wide_args[1:])
    for what, arrays in {"variables": leaves, "result": programs[0].out_avals}.items():
        if not arrays:
            raise TypeError(f"the network's {what} must be arrays: got none")
    dtypes = {path: leaf.dtype for path, leaf in leaves_of(wide_args[0], "variables").items()}
    integers = {path for path, dtype in dtypes.items() if not jnp.issubdtype(dtype, jnp.inexact)}
    # The trees may list their leaves in different orders: the wide program takes the narrow one's.
    invars = programs[1].jaxpr.invars
    of_leaf = dict(zip(dtypes, invars, strict=False))
    invars = [*(of_leaf[path] for path in leaves), *invars[len(leaves) :]]
    aligned = programs[1].replace(jaxpr=programs[1].jaxpr.replace(invars=invars))
    programs = with_broadcasts(programs[0], aligned), programs[1]
    heads: frozenset[Path] = frozenset()
    # Only a merge shows that a leaf is a head, which forbids operations that were walked before it.
    while True:
        walk = Walk(Orders(subnets), heads, integers, lines)
        values = [_leaf_value(walk, path, sizes) for path, sizes in leaves.items()]
        given = [*values, *(_input_value(walk, sizes) for sizes in inputs.values())]
        results = walk.run(programs[0], aligned, given)
        if any(value.power for value in results):
            walk.violate(
                _RESULT,
                "return",
                "it holds the head's 1/K, though the sub-networks are not merged in it",
                "give the head a kernel of its own",
            )
        walk.finish(results, _RESULT)
        if walk.violations:
            raise NotSeparableError(tuple(walk.violations.values()))
        if walk.new_heads <= heads:
            break
        heads = heads | walk.new_heads
    jaxpr = programs[0].jaxpr
    used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    scales = zip(leaves, values, strict=True)
    factors = {path: walk.factors.value(value.scale) for path, value in scales}
    # Where numbers depend on the width, an unused leaf may need a factor that nothing tells.
    scaled = walk.forgave_numbers or any(factor != 1 for factor in factors.values())
    found = []
    for path, value, is_used in zip(leaves, values, used, strict=False):
        if path in integers and (path in heads or (is_used and value.averaged_because)):
            problem = "the result depends on it, it needs a mean or a division by K, and it is "
            problem += str(dtypes[path])
            walk.violate("/".join(path), "leaf", problem, "make it floating point")
        met = path in walk.met | heads and path not in walk.doubtful
        seen = is_used or (met and not scaled)
        if (
            not seen
            and path not in integers
            and any(size.grows for size in leaves[path])
            and _entries(leaves[path])
        ):
            walk.violate("/".join(path), "leaf", _UNUSED, _TRACE_IT)
        orders = tuple(walk.orders.settle(axis.term) for axis in value.axes)
        found.append((path, LeafLayout(orders, path in heads, is_used, factors[path])))
    if walk.violations:
        raise NotSeparableError(tuple(walk.violations.values()))
    layout = Layout(subnets, tuple(found))
    results = result, wide_result
    return Separation(layout, *programs, results, walk.taps, walk.orders, walk.factors, lines)


def identity_layout(variables: PyTree) -> Layout:
    """Return the layout for one sub-network, which is the global network."""
    leaves = [
        (path, LeafLayout(tuple(Order((Run(n, shared=True),)) for n in leaf.shape)))
        for path, leaf in leaves_of(variables, "variables").items()
    ]
    return Layout(1, tuple(leaves))


def _pair(what: str, narrow: PyTree, wide: PyTree) -> dict[Path, tuple[Size, ...]]:
    """Return the sizes of every leaf's axes in both trees."""
    n, w = (
        {path: tuple(leaf.shape) for path, leaf in leaves_of(tree, what).items()}
        for tree in (narrow, wide)
    )
    differing = [f"{'/'.join(p)} is only in the sub-network" for p in n if p not in w]
    differing += [f"{'/'.join(p)} is only in the global network" for p in w if p not in n]
    differing += [
        f"{'/'.join(p)} has shape {n[p]} in the sub-network, {w[p]} in the global network"
        for p in n
        if p in w and len(n[p]) != len(w[p])
    ]
    if differing:
        raise ValueError(
            f"the {what} of the sub-network and the global network must have one structure:\n  "
            + "\n  ".join(differing)
        )
    return {path: tuple(map(Size, shape, w[path])) for path, shape in n.items()}


def _entries(sizes: Sequence[Size]) -> int:
    return math.prod(size.narrow for size in sizes)


def _leaf_value(walk: Walk, path: Path, sizes: Sequence[Size]) -> Value:
    """Return a leaf as far as it is known from its shapes."""
    name = "/".join(path)
    axes = walk.fresh_axes(sizes, name, "shape")
    if axes is None:
        return Value(tuple(Axis(walk.orders.unchecked(size)) for size in sizes))
    growing = [axis for axis in axes if walk.context.grows(axis)]
    reason = ""
    if not growing:
        shape = tuple(size.narrow for size in sizes)
        reason = f"{name} has shape {shape} in both networks, one place for K values"
    elif all(walk.orders.is_mixed(axis.term) for axis in growing):
        reason = f"{name} has entries for the features that all sub-networks share"
    power = -1 if path in walk.heads else 0
    return Value(
        axes,
        averaged_because=reason,
        power=power,
        linear=(path,),
        leaves=frozenset({path}),
        scale=ONE if path in walk.integers else Scale(powers={path: Fraction(1)}),
    )


def _input_value(walk: Walk, sizes: Sequence[Size]) -> Value:
    """Return an input: the same for all, or the sub-networks' inputs side by side."""
    axes = (
        Axis((Units(SUBNETS, size.narrow),)) if size.grows else walk.context.fresh(size)
        for size in sizes
    )
    return Value(tuple(axes), from_params=False)
