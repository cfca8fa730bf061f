"""Rules for slices, gathers and updates in place."""

import dataclasses

from dcjax._tracing.errors import Inseparable
from dcjax._tracing.rules.elementwise import nonlinear, one_of, unified
from dcjax._tracing.rules.reductions import refuse_across_subnets, resized
from dcjax._tracing.rules.registry import register_rule
from dcjax._tracing.unify import Conflict, Size, Term, scale
from dcjax._tracing.value import Axis, Context, Equation, Value


@register_rule("slice")
def _slice(context: Context, equation: Equation, value: Value) -> Value:
    starts, stops = equation.sizes("start_indices"), equation.sizes("limit_indices")
    steps = equation.same("strides") or (1,) * len(value.axes)
    axes = []
    for axis, size, start, stop, step in zip(
        value.axes, equation.out_sizes[0], starts, stops, steps, strict=True
    ):
        if not context.grows(axis):
            context.fixed(start)
            axes.append(context.fixed(size))
        elif step == 1:
            axes.append(Axis(_part(context, axis, start, stop), axis.const))
        else:
            axes.append(Axis(_every(context, axis, start, size, step), axis.const))
    return value.with_axes(axes)


def _part(context: Context, axis: Axis, start: Size, stop: Size) -> Term:
    """Return the order of a part of an axis, which must be made of that part and the rest."""
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
    """Return the order of every `step`-th entry; the axis must be made of groups of `step`."""
    size = context.orders.size(axis.term)
    if start.grows or start.narrow >= step or taken.times(step) != size:
        raise Inseparable(
            f"a strided slice of channels takes {taken} of {size} in steps of {step}, from {start}",
            f"let {step} divide the width, and stride over all channels; cut a part of them out "
            "before, such as x[..., : width // 2][..., ::2]",
        )
    every = context.orders.fresh(taken)
    context.orders.unify(axis.term, scale(every, step))
    return every


def refuse_differing_positions(context: Context, *values: Value) -> None:
    """Refuse positions (indices, starts, seeds) that are not the same in all networks."""
    for value in values:
        if value.averaged_because or context.varying_axes(value.axes):
            raise Inseparable(
                "its positions depend on the sub-networks' features",
                "take positions from the input or from axes that do not grow",
            )


@register_rule("gather")
def _gather(context: Context, equation: Equation, value: Value, indices: Value) -> Value:
    refuse_differing_positions(context, indices)
    numbers = equation.same("dimension_numbers")
    fill = equation.same("fill_value")
    if fill is not None and fill == fill and fill != 0:
        raise Inseparable(
            "positions outside of the array are filled with a non-zero number",
            'let them be 0, or clip the positions (mode="clip")',
        )
    for axis, size in zip(value.axes, equation.sizes("slice_sizes"), strict=True):
        if not context.grows(axis):
            context.fixed(size)
    removed = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    refuse_across_subnets(context, value, removed)
    axes = [context.fresh(size) for size in equation.out_sizes[0]]
    whole = [i for i in range(len(value.axes)) if i not in removed]
    for out, i in zip(numbers.offset_dims, whole, strict=True):
        if context.grows(value.axes[i]):
            if equation.out_sizes[0][out] != equation.in_sizes[0][i]:
                raise Inseparable("it gathers a part of the channels", "use a slice")
            axes[out] = value.axes[i]
    if any(context.grows(a) and i not in numbers.offset_dims for i, a in enumerate(axes)):
        raise Inseparable("its indices grow with the width", "index axes that do not grow")
    from_params = value.from_params and indices.from_params
    return dataclasses.replace(value, axes=tuple(axes), from_params=from_params)


@register_rule("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def _scatter(
    context: Context, equation: Equation, value: Value, indices: Value, updates: Value
) -> Value:
    refuse_differing_positions(context, indices)
    if equation.name == "scatter" and equation.narrow["update_jaxpr"] is not None:
        raise Inseparable("it applies a function in place", "use x.at[i].set(f(x[i]))")
    numbers = equation.same("dimension_numbers")
    windows = numbers.update_window_dims
    picked = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    refuse_across_subnets(context, value, picked)
    refuse_across_subnets(context, updates, set(range(len(updates.axes))) - {*windows})
    axes = list(value.axes)
    within = [i for i in range(len(axes)) if i not in picked]
    for i, j in zip(within, windows, strict=True):
        # A window as long as the axis starts at 0 wherever it is applied.
        if equation.in_sizes[0][i] == equation.in_sizes[2][j]:
            axes[i] = unified(context, (axes[i], updates.axes[j]))
        else:
            refuse_across_subnets(context, value, [i])
            refuse_across_subnets(context, updates, [j])
    linear = equation.name in ("scatter", "scatter-add", "scatter-sub")
    result = (one_of if linear else nonlinear)(context, (value, updates), tuple(axes))
    from_params = result.from_params and indices.from_params
    return dataclasses.replace(result, from_params=from_params)


@register_rule("dynamic_slice")
def _dynamic_slice(context: Context, equation: Equation, value: Value, *starts: Value) -> Value:
    refuse_differing_positions(context, *starts)
    sizes = zip(equation.in_sizes[0], equation.out_sizes[0], strict=True)
    refuse_across_subnets(context, value, [i for i, (a, b) in enumerate(sizes) if a != b])
    return resized(context, equation, value)


@register_rule("dynamic_update_slice")
def _dynamic_update_slice(
    context: Context, equation: Equation, value: Value, update: Value, *starts: Value
) -> Value:
    refuse_differing_positions(context, *starts)
    axes = []
    for i, (axis, part) in enumerate(zip(value.axes, update.axes, strict=True)):
        if equation.in_sizes[0][i] == equation.in_sizes[1][i]:
            axes.append(unified(context, (axis, part)))
        else:
            refuse_across_subnets(context, value, [i])
            refuse_across_subnets(context, update, [i])
            axes.append(Axis(axis.term, axis.const and part.const))
    return one_of(context, (value, update), tuple(axes))
