"""Rules for operations that run along axes, which must not cross sub-networks."""

from collections.abc import Sequence

from dcjax._tracing.rules.elementwise import join, nonlinear
from dcjax._tracing.rules.registry import register_rule
from dcjax._tracing.value import Context, Equation, Inseparable, Value


def within(context: Context, equation: Equation, value: Value, axes: Sequence[int]) -> None:
    """The operation works along these axes, which must not run across sub-networks."""
    if any(context.grows(value.axes[i]) for i in axes):
        raise Inseparable(
            "it runs over the channels of all sub-networks",
            "let it run within a group or a head of fixed size, whose number grows with the width "
            "(nn.GroupNorm(num_groups=None, group_size=…) in place of a LayerNorm; attention with "
            'fields=("width", "heads")), and let the network return its logits',
        )


@register_rule(
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "reduce_xor",
    "argmax",
    "argmin",
)
def _reduce(context: Context, equation: Equation, value: Value) -> Value:
    summed = equation.same("axes")
    within(context, equation, value, summed)
    combined = nonlinear(context, [value], context.spread(value))
    return combined.with_axes(a for i, a in enumerate(value.axes) if i not in summed)


@register_rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(context: Context, equation: Equation, value: Value) -> Value:
    within(context, equation, value, [equation.same("axis")])
    if equation.name == "cumsum":
        return value
    return nonlinear(context, [value], context.spread(value)).with_axes(value.axes)


@register_rule("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _reduce_window(context: Context, equation: Equation, value: Value) -> Value:
    window = equation.same("window_dimensions")
    names = ("window_strides", "base_dilation", "window_dilation")
    steps = zip(window, *(equation.same(name) for name in names), strict=True)
    pads = equation.same("padding")
    moved = [i for i, some in enumerate(steps) if {*some} != {1} or any(pads[i])]
    within(context, equation, value, moved)
    if equation.name != "reduce_window_sum":
        value = nonlinear(context, [value], context.spread(value)).with_axes(value.axes)
    return resized(context, equation, value)


def resized(context: Context, equation: Equation, value: Value) -> Value:
    """The same axes where they keep their length, fresh fixed ones elsewhere."""
    return value.with_axes(
        axis if before == after else context.fixed(after)
        for axis, before, after in zip(
            value.axes, equation.in_sizes[0], equation.out_sizes[0], strict=True
        )
    )


@register_rule("rev")
def _rev(context: Context, equation: Equation, value: Value) -> Value:
    within(context, equation, value, equation.same("dimensions"))
    return value


@register_rule("sort")
def _sort(context: Context, equation: Equation, *values: Value) -> list[Value]:
    for value in values:
        within(context, equation, value, [equation.same("dimension")])
    axes = join(context, equation, values)
    combined = nonlinear(context, values, context.spread(Value(axes)))
    return [combined.with_axes(axes) for _ in values]


@register_rule("top_k")
def _top_k(context: Context, equation: Equation, value: Value) -> list[Value]:
    within(context, equation, value, [equation.narrow.get("axis", len(value.axes) - 1)])
    combined = nonlinear(context, [value], context.spread(value)).with_axes(value.axes)
    return [resized(context, equation, combined)] * 2


@register_rule("fft")
def _fft(context: Context, equation: Equation, value: Value) -> Value:
    axes = len(value.axes)
    within(context, equation, value, range(axes - len(equation.same("fft_lengths")), axes))
    return resized(context, equation, value)
