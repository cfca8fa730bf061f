"""Rules for operations that move entries, and solve for the orders that let them."""

import dataclasses
import math
from collections.abc import Sequence

from dcjax._tracing.rules.axiswise import resized, within
from dcjax._tracing.rules.elementwise import either, is_broadcast, one_of
from dcjax._tracing.rules.registry import register_rule
from dcjax._tracing.unify import Conflict, Size, Term, repeat, scale
from dcjax._tracing.value import Axis, Context, Equation, Inseparable, Value, refuse_own


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
    if value.own and any(axis.const and context.grows(axis) for axis in axes):
        raise refuse_own(value, "it is spread over the sub-networks' channels")
    return value.with_axes(axes)


@register_rule("reshape")
def _reshape(context: Context, equation: Equation, value: Value) -> Value:
    axes: list[Axis] = []
    sizes = equation.in_sizes[0]
    if any(0 in size for size in (*sizes, *equation.out_sizes[0])):
        raise Inseparable("it reshapes an array without entries", "leave empty arrays out")
    order = equation.same("dimensions")
    if order is not None:  # the axes are transposed first: lax.reshape, order="F", vmapped conv
        value, sizes = value.with_axes(value.axes[i] for i in order), [sizes[i] for i in order]
    for before, after in _factor(sizes, equation.out_sizes[0]):
        axes += _regroup(
            context, [value.axes[i] for i in before], [equation.out_sizes[0][i] for i in after]
        )
    return value.with_axes(axes)


def _factor(before: Sequence[Size], after: Sequence[Size]) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest groups of axes of equal size, in both networks at once."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = [], []
        sizes = [Size(1, 1), Size(1, 1)]
        while not (ins or outs) or sizes[0] != sizes[1]:
            take_in = j >= len(after) or (i < len(before) and sizes[0] <= sizes[1])
            side, index, axes = (0, i, before) if take_in else (1, j, after)
            sizes[side] = Size(
                sizes[side].narrow * axes[index].narrow, sizes[side].wide * axes[index].wide
            )
            (ins if take_in else outs).append(index)
            i, j = i + take_in, j + (not take_in)
        groups.append((ins, outs))
    return groups


def _regroup(context: Context, axes: Sequence[Axis], sizes: Sequence[Size]) -> list[Axis]:
    """The axes of one group, merged and split anew."""
    growing = [i for i, axis in enumerate(axes) if context.grows(axis)]
    if not growing:
        return [context.fixed(size) for size in sizes]
    targets = [i for i, size in enumerate(sizes) if size.grows]
    if len(growing) > 1 or len(targets) != 1:
        raise Inseparable(
            "a reshape mixes several growing axes", "reshape one axis of channels at a time"
        )

    def fixed(part: Sequence[Axis]) -> int:
        return math.prod(context.orders.size(axis.term).narrow for axis in part)

    at, to = growing[0], targets[0]
    merged = repeat(fixed(axes[:at]), scale(axes[at].term, fixed(axes[at + 1 :])))
    result = [context.fresh(size, axes[at].const) for size in sizes]
    before = math.prod(size.narrow for size in sizes[:to])
    behind = math.prod(size.narrow for size in sizes[to + 1 :])
    context.orders.unify(merged, repeat(before, scale(result[to].term, behind)))
    return result


@register_rule("concatenate")
def _concatenate(context: Context, equation: Equation, *values: Value) -> Value:
    along = equation.same("dimension")
    axes = []
    for i in range(len(values[0].axes)):
        meeting = [value.axes[i] for value in values]
        if i == along:
            term = tuple(piece for axis in meeting for piece in axis.term)
        else:
            term = meeting[0].term
            for axis in meeting[1:]:
                context.orders.unify(term, axis.term)
        constant = i != along or all(value.zero for value in values)
        axes.append(Axis(term, constant and all(axis.const for axis in meeting)))
    return one_of(context, values, axes)


@register_rule("tile")
def _tile(context: Context, equation: Equation, value: Value) -> Value:
    reps = equation.same("reps")
    return value.with_axes(
        Axis(repeat(n, axis.term), axis.const) if context.grows(axis) else context.fixed(size)
        for n, axis, size in zip(reps, value.axes, equation.out_sizes[0], strict=True)
    )


@register_rule("unstack")
def _unstack(context: Context, equation: Equation, value: Value) -> list[Value]:
    along = equation.same("axis")
    within(context, equation, value, [along])
    part = value.with_axes(axis for i, axis in enumerate(value.axes) if i != along)
    return [part] * len(equation.out_sizes)


@register_rule("stack")
def _stack(context: Context, equation: Equation, *values: Value) -> Value:
    along = equation.same("axis")
    one = either(context, values)
    count = context.fixed(equation.out_sizes[0][along])
    return one.with_axes((*one.axes[:along], count, *one.axes[along:]))


@register_rule("pad")
def _pad(context: Context, equation: Equation, value: Value, filling: Value) -> Value:
    axes = []
    narrow, wide = equation.narrow["padding_config"], equation.wide["padding_config"]
    for i, (axis, n, w) in enumerate(zip(value.axes, narrow, wide, strict=True)):
        if n == w and not context.grows(axis):
            axes.append(context.fresh(equation.out_sizes[0][i]))
            continue
        if min(*n, *w) < 0 or n[2] or w[2]:
            raise Inseparable("channels are padded inside, or cut", "pad at the ends, or slice")
        low, high = (context.orders.fresh(Size(n[j], w[j])) for j in (0, 1))
        axes.append(Axis((*low, *axis.term, *high), axis.const and filling.zero and value.zero))
    return one_of(context, (value, filling), axes)


@register_rule("slice")
def _slice(context: Context, equation: Equation, value: Value) -> Value:
    names = ("start_indices", "limit_indices", "strides")
    narrow, wide = ([params[name] for name in names] for params in (equation.narrow, equation.wide))
    steps = equation.same("strides") or (1,) * len(value.axes)
    axes = []
    for i, axis in enumerate(value.axes):
        size = equation.out_sizes[0][i]
        start, stop = (Size(narrow[j][i], wide[j][i]) for j in (0, 1))
        if not context.grows(axis):
            context.fixed(start)
            axes.append(context.fixed(size))
            continue
        part = (
            _part(context, axis, start, stop)
            if steps[i] == 1
            else _every(context, axis, start, size, steps[i])
        )
        axes.append(Axis(part, axis.const))
    return value.with_axes(axes)


def _part(context: Context, axis: Axis, start: Size, stop: Size) -> Term:
    """The order of a part of an axis: the axis must be made of that part and the rest."""
    orders = context.orders
    size = orders.size(axis.term)
    try:
        before, part, rest = (orders.fresh(piece) for piece in (start, stop - start, size - stop))
    except Conflict as conflict:
        raise Inseparable(
            f"it cuts channels out of proportion to the width, from {start} to {stop} of {size}",
            "take the same fraction of the channels in both networks, such as x[..., : width // 2]",
        ) from conflict
    orders.unify(axis.term, (*before, *part, *rest))
    return part


def _every(context: Context, axis: Axis, start: Size, taken: Size, step: int) -> Term:
    """The order of one entry out of every `step`: the axis must be made of such groups."""
    size = context.orders.size(axis.term)
    if start.grows or start.narrow >= step or taken.times(step) != size:
        raise Inseparable(
            f"a strided slice of channels takes {taken} of {size} in steps of {step}, from {start}",
            f"let {step} divide the width, and stride over all channels; a part of them is cut "
            "out before, such as x[..., : width // 2][..., ::2]",
        )
    every = context.orders.fresh(taken)
    context.orders.unify(axis.term, scale(every, step))
    return every


@register_rule("split")
def _split(context: Context, equation: Equation, value: Value) -> list[Value]:
    along = equation.same("axis")
    parts = [context.fresh(sizes[along], value.axes[along].const) for sizes in equation.out_sizes]
    whole = tuple(piece for part in parts for piece in part.term)
    context.orders.unify(value.axes[along].term, whole)
    return [
        value.with_axes(part if i == along else axis for i, axis in enumerate(value.axes))
        for part in parts
    ]


@register_rule("platform_index")
def _platform_index(context: Context, equation: Equation) -> Value:
    """The number of a platform's branch in `lax.platform_dependent`."""
    return Value()


@register_rule("iota")
def _iota(context: Context, equation: Equation) -> Value:
    sizes = equation.out_sizes[0]
    if sizes[equation.same("dimension")].grows:
        raise Inseparable(
            "it numbers the channels, which are others in the global network",
            "make it a parameter, or let it number an axis that does not grow",
        )
    return Value(tuple(context.fresh(size, const=True) for size in sizes))


def _unmoved(context: Context, equation: Equation, *values: Value) -> None:
    """Positions (indices, starts) that must be the same in all networks."""
    for value in values:
        if value.own or context.spread(value):
            raise Inseparable(
                "its positions depend on the sub-networks' features",
                "take positions from the input or from axes that do not grow",
            )


@register_rule("gather")
def _gather(context: Context, equation: Equation, value: Value, indices: Value) -> Value:
    _unmoved(context, equation, indices)
    numbers = equation.same("dimension_numbers")
    fillings = [params.get("fill_value") for params in (equation.narrow, equation.wide)]
    if any(fill is not None and fill == fill and fill != 0 for fill in fillings):
        raise Inseparable(
            "positions outside the array are filled with a number of their own",
            'let them be 0, or clip the positions (mode="clip")',
        )
    removed = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = [i for i in range(len(value.axes)) if i not in removed]
    sizes = equation.out_sizes[0]
    for i, axis in enumerate(value.axes):
        if not context.grows(axis):
            context.fixed(Size(*(p["slice_sizes"][i] for p in (equation.narrow, equation.wide))))
    axes = [context.fresh(size) for size in sizes]
    for i in (*removed, *numbers.start_index_map):
        within(context, equation, value, [i])
    for out, i in zip(numbers.offset_dims, whole, strict=True):
        if context.grows(value.axes[i]):
            if sizes[out] != equation.in_sizes[0][i]:
                raise Inseparable("it gathers a part of the channels", "use a slice")
            axes[out] = value.axes[i]
    if any(context.grows(a) and i not in numbers.offset_dims for i, a in enumerate(axes)):
        raise Inseparable("its indices grow with the width", "index axes that do not grow")
    return dataclasses.replace(
        value, axes=tuple(axes), from_params=value.from_params and indices.from_params
    )


@register_rule("dynamic_slice")
def _dynamic_slice(context: Context, equation: Equation, value: Value, *starts: Value) -> Value:
    _unmoved(context, equation, *starts)
    cut = [
        i
        for i, sizes in enumerate(zip(equation.in_sizes[0], equation.out_sizes[0], strict=True))
        if sizes[0] != sizes[1]
    ]
    within(context, equation, value, cut)
    return resized(context, equation, value)


@register_rule("dynamic_update_slice")
def _dynamic_update_slice(
    context: Context, equation: Equation, value: Value, update: Value, *starts: Value
) -> Value:
    _unmoved(context, equation, *starts)
    axes = []
    for i, (axis, part) in enumerate(zip(value.axes, update.axes, strict=True)):
        if equation.in_sizes[0][i] == equation.in_sizes[1][i]:
            context.orders.unify(axis.term, part.term)
        else:
            within(context, equation, value, [i])
            within(context, equation, update, [i])
        axes.append(Axis(axis.term, axis.const and part.const))
    return one_of(context, (value, update), axes)


@register_rule(
    "random_seed",
    "random_wrap",
    "random_unwrap",
    "random_bits",
    "random_split",
    "random_fold_in",
    "threefry2x32",
    "random_clone",
    "random_gamma",
    "rng_bit_generator",
)
def _random(context: Context, equation: Equation, *values: Value) -> list[Value]:
    _unmoved(context, equation, *values)
    if any(size.grows for sizes in equation.out_sizes for size in sizes):
        raise Inseparable(
            "random numbers are drawn for every channel, others in the global network",
            "trace the network in evaluation mode (train=False, deterministic=True); dropout is "
            "exact there",
        )
    return [
        Value(tuple(context.fresh(size) for size in sizes), from_params=False)
        for sizes in equation.out_sizes
    ]


@register_rule("optimization_barrier")
def _identity(context: Context, equation: Equation, *values: Value) -> list[Value]:
    return list(values)
