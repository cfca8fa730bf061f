"""From two traced networks to the layout of their variables."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from dcjax._layout.layout import Layout, LeafLayout, Path, path_of
from dcjax._layout.order import shared
from dcjax._tracing.jaxprs import trace_program, used_arguments
from dcjax._tracing.unify import Conflict, Orders, Size
from dcjax._tracing.value import Axis, Value
from dcjax._tracing.walk import NotSeparableError, PairTracer, Tap, Violation

PyTree = Any


class Separation(NamedTuple):
    """Both programs, the layout of the variables, and what is known of every array in between."""

    layout: Layout
    narrow: jex.ClosedJaxpr
    wide: jex.ClosedJaxpr
    taps: dict[tuple[int, ...], Tap]
    orders: Orders


def separate(
    narrow: Callable[..., Any],
    wide: Callable[..., Any],
    narrow_args: tuple[PyTree, ...],
    wide_args: tuple[PyTree, ...],
    subnets: int,
) -> Separation:
    """Trace two networks, called with (variables, *inputs), and find the layout of the variables.

    Growing axes of the inputs hold the sub-networks' inputs side by side, as `samples.join` makes
    them. All arguments are abstract or concrete arrays, of which only shapes and dtypes are used.

    Raises:
      NotSeparableError: the global network cannot compute what the sub-networks compute.
      ValueError: the two trees of variables differ in structure.
    """
    programs = trace_program(narrow, *narrow_args), trace_program(wide, *wide_args)
    leaves = _pair_leaves(narrow_args[0], wide_args[0])
    inputs = _pair_inputs(_shapes(narrow_args[1:]), _shapes(wide_args[1:]))
    integers = frozenset(
        path_of(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(wide_args[0])
        if not jnp.issubdtype(leaf.dtype, jnp.inexact)
    )
    aligned = programs[0], _in_order(programs[1], wide_args[0], [path for path, _ in leaves])
    heads: frozenset[Path] = frozenset()
    while True:
        tracer = PairTracer(subnets, heads, integers)
        values = [_leaf_value(tracer, path, sizes) for path, sizes in leaves]
        values += [_input_value(tracer.orders, n, w) for n, w in inputs]
        outputs = tracer.run(*aligned, values)
        if any(value.power for value in outputs):
            tracer.violate(_TIED_OUTPUT)
        if tracer.violations:
            raise NotSeparableError(tuple(tracer.violations.values()))
        if tracer.wanted <= heads:
            break
        heads = heads | tracer.wanted
    used = used_arguments(programs[0])
    _refuse_integers(wide_args[0], heads, values, used)
    settled = tuple(
        (
            path,
            LeafLayout(tuple(tracer.orders.settle(a.term) for a in v.axes), path in heads, is_used),
        )
        for (path, _), v, is_used in zip(leaves, values, used, strict=False)
    )
    return Separation(Layout(subnets, settled), *programs, tracer.taps, tracer.orders)


def identity_layout(variables: PyTree) -> Layout:
    """The layout for one sub-network, which is the global network."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return Layout(
        1, tuple((path_of(p), LeafLayout(tuple(map(shared, x.shape)))) for p, x in leaves)
    )


def _refuse_integers(
    variables: PyTree, heads: frozenset[Path], values: Sequence[Value], used: Sequence[bool]
) -> None:
    """Integers that the result depends on have neither a mean nor a K-th part."""
    wrong = [
        Violation(
            "/".join(path_of(path)),
            "leaf",
            f"the result depends on it, it needs a mean or a division by K, and it is {leaf.dtype}",
            "make it floating point",
        )
        for (path, leaf), value, is_used in zip(
            jax.tree_util.tree_leaves_with_path(variables), values, used, strict=False
        )
        if is_used
        and not jnp.issubdtype(leaf.dtype, jnp.inexact)
        and (value.own or path_of(path) in heads)
    ]
    if wrong:
        raise NotSeparableError(wrong)


_TIED_OUTPUT = Violation(
    "the network's result",
    "return",
    "an array is returned that holds the head's 1/K, though the sub-networks are not merged in it",
    "give the head a kernel of its own",
)


def _pair_leaves(narrow: PyTree, wide: PyTree) -> list[tuple[Path, tuple[Size, ...]]]:
    """Every leaf's path and its axes' sizes in both networks."""
    n, w = (
        {path_of(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(t)}
        for t in (narrow, wide)
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
            "the variables of the sub-network and the global network must have one structure:\n  "
            + "\n  ".join(differing)
        )
    return [(path, tuple(map(Size, shape, w[path]))) for path, shape in n.items()]


def _in_order(program: jex.ClosedJaxpr, variables: PyTree, paths: list[Path]) -> jex.ClosedJaxpr:
    """The program with its first arguments, the leaves of the variables, in that order."""
    own = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    first, rest = program.jaxpr.invars[: len(own)], program.jaxpr.invars[len(own) :]
    invars = [*(first[own.index(path)] for path in paths), *rest]
    return program.replace(jaxpr=program.jaxpr.replace(invars=invars))


def _pair_inputs(
    narrow: list[tuple[int, ...]], wide: list[tuple[int, ...]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every input's shape in both networks."""
    if [len(shape) for shape in narrow] != [len(shape) for shape in wide]:
        raise ValueError(
            "the sub-network and the global network must have inputs of the same number and "
            f"ranks, got shapes {narrow} and {wide}"
        )
    return list(zip(narrow, wide, strict=True))


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in jax.tree.leaves(tree)]


def _leaf_value(tracer: PairTracer, path: Path, sizes: Sequence[Size]) -> Value:
    """A leaf before anything is known of it but its shapes."""
    name = "/".join(path)
    try:
        axes = tuple(tracer.context.fresh(size) for size in sizes)
    except Conflict as conflict:
        remedy = "let every width be K times as large in the global network, or the same"
        tracer.violate(Violation(name, "shape", str(conflict), remedy))
        return Value(tuple(Axis(tracer.orders.unchecked(size)) for size in sizes))
    growing = [axis for axis in axes if tracer.context.grows(axis)]
    own = "" if any(not tracer.orders.is_mixed(a.term) for a in growing) else _own_leaf(name, sizes)
    return Value(axes, own=own, power=-1 if path in tracer.heads else 0, linear=(path,))


def _own_leaf(name: str, sizes: Sequence[Size]) -> str:
    if any(size.grows for size in sizes):
        return f"{name} has entries for the features that all sub-networks share"
    shape = tuple(s.narrow for s in sizes)
    return f"{name} has shape {shape} in both networks, one place for K values"


def _input_value(orders: Orders, narrow: Sequence[int], wide: Sequence[int]) -> Value:
    """An input: the same for all, or the sub-networks' inputs side by side."""
    axes = [
        Axis(orders.k_major(n) if n != w else orders.fresh(Size(n, n)))
        for n, w in zip(narrow, wide, strict=True)
    ]
    return Value(tuple(axes), from_params=False)
