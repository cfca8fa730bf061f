"""Rules for operations that run along axes (maxima, windows, sorting), except for plain sums."""

from collections.abc import Iterable
from typing import SupportsIndex

from dcjax._tracing.errors import GROUPED, Inseparable
from dcjax._tracing.rules.elementwise import joined_axes, nonlinear
from dcjax._tracing.rules.registry import register_rule
from dcjax._tracing.value import Context, Equation, Value


def refuse_across_subnets(context: Context, value: Value, axes: Iterable[SupportsIndex]) -> None:
    """Refuse an operation along axes that hold the channels of all sub-networks."""
    if any(context.grows(value.axes[i]) for i in axes):
        raise Inseparable(
            "it runs over the channels of all sub-networks",
            "let it run within a group or a head of fixed size, whose number grows with the width "
            f"({GROUPED} for norms; attention with fields=('width', 'heads')), and let the network "
            "return its logits",
        )


@register_rule("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor")
@register_rule("argmax", "argmin")
def _reduce(context: Context, equation: Equation, value: Value) -> Value:
    reduced = equation.same("axes")
    refuse_across_subnets(context, value, reduced)
    combined = nonlinear(context, [value], value.axes)
    return combined.with_axes(axis for i, axis in enumerate(value.axes) if i not in reduced)


@register_rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(context: Context, equation: Equation, value: Value) -> Value:
    refuse_across_subnets(context, value, [equation.same("axis")])
    return value if equation.name == "cumsum" else nonlinear(context, [value], value.axes)


@register_rule("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _reduce_window(context: Context, equation: Equation, value: Value) -> Value:
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    steps = zip(*(equation.same(name) for name in names), strict=True)
    pads = equation.same("padding")
    moved = [i for i, step in enumerate(steps) if {*step} != {1} or any(pads[i])]
    refuse_across_subnets(context, value, moved)
    if equation.name != "reduce_window_sum":
        value = nonlinear(context, [value], value.axes)
    return resized(context, equation, value)


def resized(context: Context, equation: Equation, value: Value) -> Value:
    """Keep the axes that keep their length, and make fresh fixed ones in place of the others."""
    sizes = zip(value.axes, equation.in_sizes[0], equation.out_sizes[0], strict=True)
    return value.with_axes(
        axis if before == after else context.fixed(after) for axis, before, after in sizes
    )


@register_rule("rev")
def _rev(context: Context, equation: Equation, value: Value) -> Value:
    refuse_across_subnets(context, value, equation.same("dimensions"))
    return value


@register_rule("sort")
def _sort(context: Context, equation: Equation, *values: Value) -> list[Value]:
    for value in values:
        refuse_across_subnets(context, value, [equation.same("dimension")])
    combined = nonlinear(context, values, joined_axes(context, equation, values))
    return [combined] * len(values)


@register_rule("top_k")
def _top_k(context: Context, equation: Equation, value: Value) -> list[Value]:
    refuse_across_subnets(context, value, [equation.narrow.get("axis", -1)])
    return [resized(context, equation, nonlinear(context, [value], value.axes))] * 2


@register_rule("fft")
def _fft(context: Context, equation: Equation, value: Value) -> Value:
    axes = range(len(value.axes))[-len(equation.narrow["fft_lengths"]) :]
    refuse_across_subnets(context, value, axes)
    equation.same("fft_lengths")
    return resized(context, equation, value)
