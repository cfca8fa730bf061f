"""Rules for operations that merge, split and join axes, and solve for the orders that let them."""

import bisect
import itertools
import math
from collections.abc import Sequence

from dcjax._tracing.errors import Inseparable
from dcjax._tracing.rules.elementwise import either, is_broadcast, one_of, refuse_mean, unified
from dcjax._tracing.rules.reductions import refuse_across_subnets
from dcjax._tracing.rules.registry import register_rule
from dcjax._tracing.unify import Size, Term, repeat, scale
from dcjax._tracing.value import Axis, Context, Equation, Value


@register_rule("transpose")
def _transpose(context: Context, equation: Equation, value: Value) -> Value:
    return value.with_axes(value.axes[i] for i in equation.same("permutation"))


@register_rule("squeeze")
def _squeeze(context: Context, equation: Equation, value: Value) -> Value:
    gone = equation.same("dimensions")
    return value.with_axes(axis for i, axis in enumerate(value.axes) if i not in gone)


@register_rule("broadcast_in_dim")
def _broadcast_in_dim(context: Context, equation: Equation, value: Value, *_: Value) -> Value:
    source = {out: i for i, out in enumerate(equation.same("broadcast_dimensions"))}
    sizes = equation.in_sizes[0]
    axes = [
        value.axes[source[out]]
        if out in source and not is_broadcast(sizes[source[out]], size)
        else context.fresh(size, const=True)
        for out, size in enumerate(equation.out_sizes[0])
    ]
    refuse_mean(context, [value], (axis for axis in axes if axis.const))
    return value.with_axes(axes)


@register_rule("reshape")
def _reshape(context: Context, equation: Equation, value: Value) -> Value:
    axes: list[Axis] = []
    before, after = equation.in_sizes[0], equation.out_sizes[0]
    if any(0 in size for size in (*before, *after)):
        raise Inseparable("it reshapes an array without entries", "leave empty arrays out")
    order = equation.same("dimensions")
    if order is not None:  # the axes are transposed first: lax.reshape, order="F", vmapped conv
        value, before = value.with_axes(value.axes[i] for i in order), [before[i] for i in order]
    for merged, split in _factor(before, after):
        axes += _regroup(context, [value.axes[i] for i in merged], [after[i] for i in split])
    return value.with_axes(axes)


def _factor(before: Sequence[Size], after: Sequence[Size]) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest groups of axes of equal size, in both networks at once."""
    sides = [list(itertools.accumulate(sizes, _product)) for sizes in (before, after)]
    ends = sorted({*sides[0]} & {*sides[1]} | {products[-1] for products in sides if products})
    groups: list[tuple[list[int], list[int]]] = [([], []) for _ in ends]
    for side, products in enumerate(sides):
        for i, product in enumerate(products):
            groups[bisect.bisect_left(ends, product)][side].append(i)
    return groups


def _product(a: Size, b: Size) -> Size:
    return Size(a.narrow * b.narrow, a.wide * b.wide)


def _regroup(context: Context, axes: Sequence[Axis], sizes: Sequence[Size]) -> list[Axis]:
    """Return the axes of one group, merged and split anew."""
    growing = [axis for axis in axes if context.grows(axis)]
    if not growing:
        return [context.fixed(size) for size in sizes]
    if len(growing) > 1 or sum(size.grows for size in sizes) != 1:
        raise Inseparable(
            "a reshape mixes several growing axes", "reshape one axis of channels at a time"
        )
    result = [context.fresh(size, growing[0].const) for size in sizes]
    context.orders.unify(_flattened(context, axes), _flattened(context, result))
    return result


def _flattened(context: Context, axes: Sequence[Axis]) -> Term:
    """Return the order of axes, one of which grows, flattened into one."""
    at = next(i for i, axis in enumerate(axes) if context.grows(axis))
    lengths = [context.orders.size(axis.term).narrow for axis in axes]
    return repeat(math.prod(lengths[:at]), scale(axes[at].term, math.prod(lengths[at + 1 :])))


@register_rule("concatenate")
def _concatenate(context: Context, equation: Equation, *values: Value) -> Value:
    along = equation.same("dimension")
    axes = []
    for i, meeting in enumerate(zip(*(value.axes for value in values), strict=True)):
        if i != along:
            axes.append(unified(context, meeting))
            continue
        term = tuple(piece for axis in meeting for piece in axis.term)
        const = all(axis.const for axis in meeting) and all(value.zero for value in values)
        axes.append(Axis(term, const))
    return one_of(context, values, tuple(axes))


@register_rule("tile")
def _tile(context: Context, equation: Equation, value: Value) -> Value:
    axes = []
    sizes = zip(equation.sizes("reps"), equation.in_sizes[0], equation.out_sizes[0], strict=True)
    for axis, (reps, before, after) in zip(value.axes, sizes, strict=True):
        if reps.grows and before == Size(1, 1):  # a broadcast
            axes.append(context.fresh(after, const=True))
        elif context.grows(axis) and not reps.grows:
            axes.append(Axis(repeat(reps.narrow, axis.term), axis.const))
        else:
            axes.append(context.fixed(after))
    refuse_mean(context, [value], (axis for axis in axes if axis.const))
    return value.with_axes(axes)


@register_rule("split")
def _split(context: Context, equation: Equation, value: Value) -> list[Value]:
    along = equation.same("axis")
    parts = [context.fresh(sizes[along], value.axes[along].const) for sizes in equation.out_sizes]
    whole = tuple(piece for part in parts for piece in part.term)
    context.orders.unify(value.axes[along].term, whole)
    before, after = value.axes[:along], value.axes[along + 1 :]
    return [value.with_axes((*before, part, *after)) for part in parts]


@register_rule("unstack")
def _unstack(context: Context, equation: Equation, value: Value) -> list[Value]:
    along = equation.same("axis")
    refuse_across_subnets(context, value, [along])
    part = value.with_axes(axis for i, axis in enumerate(value.axes) if i != along)
    return [part] * len(equation.out_sizes)


@register_rule("stack")
def _stack(context: Context, equation: Equation, *values: Value) -> Value:
    along = equation.same("axis")
    part = either(context, values)
    count = context.fixed(equation.out_sizes[0][along])
    return part.with_axes((*part.axes[:along], count, *part.axes[along:]))


@register_rule("pad")
def _pad(context: Context, equation: Equation, value: Value, filling: Value) -> Value:
    axes = []
    padding = zip(*equation.both("padding_config"), strict=True)
    for axis, (n, w), size in zip(value.axes, padding, equation.out_sizes[0], strict=True):
        if n == w and not context.grows(axis):
            axes.append(context.fresh(size))
            continue
        if min(*n, *w) < 0 or n[2] or w[2]:
            raise Inseparable("channels are padded inside, or cut", "pad at the ends, or slice")
        low, high = (context.orders.fresh(Size(int(n[i]), int(w[i]))) for i in (0, 1))
        axes.append(Axis((*low, *axis.term, *high), axis.const and filling.zero and value.zero))
    return one_of(context, (value, filling), tuple(axes))
