"""The solve loop: from two networks to the layout of their variables."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import PyTree

from dcjax._checks import leaves_of
from dcjax._layout.layout import Layout, LeafLayout, Path
from dcjax._layout.order import shared
from dcjax._tracing.errors import NotSeparableError, Violation
from dcjax._tracing.jaxprs import trace_program, used_arguments
from dcjax._tracing.unify import SUBNETS, Orders, Size, Units
from dcjax._tracing.value import Axis, Value
from dcjax._tracing.walk import Tap, Walk


class Separation(NamedTuple):
    """Both networks as jaxprs, the layout of the variables, and the arrays in between."""

    layout: Layout
    narrow: jex.ClosedJaxpr
    wide: jex.ClosedJaxpr
    taps: dict[tuple[int, ...], Tap]
    orders: Orders


def separate(
    narrow: Callable[..., Any],
    wide: Callable[..., Any],
    narrow_args: Sequence[PyTree],
    wide_args: Sequence[PyTree],
    subnets: int,
) -> Separation:
    """Trace two networks, called with (variables, *inputs), and find the layout of the variables.

    Growing axes of the inputs hold the sub-networks' inputs side by side, as `samples.join` makes
    them. Only the shapes and dtypes of the arguments are used.

    Raises:
      NotSeparableError: the global network cannot compute what the sub-networks compute.
      ValueError: the two trees of variables differ in structure, or the inputs in number or rank.
    """
    programs = trace_program(narrow, *narrow_args), trace_program(wide, *wide_args)
    narrow_leaves, wide_leaves = (leaves_of(v, "variables") for v in (narrow_args[0], wide_args[0]))
    leaves = _pair_leaves(narrow_leaves, wide_leaves)
    inputs = _pair_inputs(narrow_args[1:], wide_args[1:])
    dtypes = {path: leaf.dtype for path, leaf in wide_leaves.items()}
    integers = {path: d for path, d in dtypes.items() if not jnp.issubdtype(d, jnp.inexact)}
    # The trees may list their leaves in different orders: the wide program takes the narrow one's.
    invars = programs[1].jaxpr.invars
    of_leaf = dict(zip(wide_leaves, invars, strict=False))
    invars = [*(of_leaf[path] for path in leaves), *invars[len(leaves) :]]
    aligned = programs[1].replace(jaxpr=programs[1].jaxpr.replace(invars=invars))
    heads: frozenset[Path] = frozenset()
    while True:
        walk = Walk(Orders(subnets), heads, integers)
        values = [_leaf_value(walk, path, sizes) for path, sizes in leaves.items()]
        given = [*values, *(_input_value(walk, sizes) for sizes in inputs)]
        outputs = walk.run(programs[0], aligned, given)
        if any(value.power for value in outputs):
            walk.violate(_TIED_RESULT)
        if walk.violations:
            raise NotSeparableError(tuple(walk.violations.values()))
        if walk.new_heads <= heads:
            break
        heads = heads | walk.new_heads
    found = []
    for path, value, is_used in zip(leaves, values, used_arguments(programs[0]), strict=False):
        if is_used and path in integers and (value.averaged_because or path in heads):
            walk.violate(
                Violation(
                    "/".join(path),
                    "leaf",
                    "the result depends on it, it needs a mean or a division by K, and it is "
                    f"{integers[path]}",
                    "make it floating point",
                )
            )
        orders = tuple(walk.orders.settle(axis.term) for axis in value.axes)
        found.append((path, LeafLayout(orders, path in heads, is_used)))
    if walk.violations:
        raise NotSeparableError(tuple(walk.violations.values()))
    return Separation(Layout(subnets, tuple(found)), *programs, walk.taps, walk.orders)


_TIED_RESULT = Violation(
    "the network's result",
    "return",
    "an array is returned that holds the head's 1/K, though the sub-networks are not merged in it",
    "give the head a kernel of its own",
)


def identity_layout(variables: PyTree) -> Layout:
    """Return the layout for one sub-network, which is the global network."""
    leaves = leaves_of(variables, "variables").items()
    return Layout(1, tuple((path, LeafLayout(tuple(map(shared, x.shape)))) for path, x in leaves))


def _pair_leaves(narrow: dict[Path, Any], wide: dict[Path, Any]) -> dict[Path, tuple[Size, ...]]:
    """Return the sizes of every leaf's axes."""
    n, w = ({path: tuple(x.shape) for path, x in tree.items()} for tree in (narrow, wide))
    differing = [f"{'/'.join(p)} is only in the sub-network" for p in n if p not in w]
    differing += [f"{'/'.join(p)} is only in the global network" for p in w if p not in n]
    differing += [
        f"{'/'.join(p)} has shape {n[p]} in the sub-network, {w[p]} in the global network"
        for p in n
        if p in w and len(n[p]) != len(w[p])
    ]
    if differing:
        raise ValueError(
            "the variables of the sub-network and the global network must have one structure:\n  "
            + "\n  ".join(differing)
        )
    return {path: tuple(map(Size, shape, w[path])) for path, shape in n.items()}


def _pair_inputs(narrow: PyTree, wide: PyTree) -> list[tuple[Size, ...]]:
    """Return the sizes of every input's axes."""
    n, w = ([tuple(leaf.shape) for leaf in jax.tree.leaves(tree)] for tree in (narrow, wide))
    if list(map(len, n)) != list(map(len, w)):
        raise ValueError(
            "the sub-network and the global network must have inputs of the same number and "
            f"ranks, got shapes {n} and {w}"
        )
    return [tuple(map(Size, *shapes)) for shapes in zip(n, w, strict=True)]


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
    return Value(axes, averaged_because=reason, power=power, linear=(path,))


def _input_value(walk: Walk, sizes: Sequence[Size]) -> Value:
    """Return an input: the same for all, or the sub-networks' inputs side by side."""
    axes = (
        Axis((Units(SUBNETS, size.narrow),)) if size.grows else walk.context.fresh(size)
        for size in sizes
    )
    return Value(tuple(axes), from_params=False)
