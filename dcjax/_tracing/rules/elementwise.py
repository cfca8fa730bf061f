"""Rules for elementwise operations: what stays linear, and what keeps the zeros between blocks."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from dcjax._tracing.errors import Inseparable
from dcjax._tracing.rules.registry import RULES, Rule, register_rule
from dcjax._tracing.unify import Size
from dcjax._tracing.value import Axis, Context, Equation, Value, are_apart, mean_refused

_OFF_DIAGONAL = (
    "the zeros between the sub-networks' blocks would not stay zero",
    "use only operations that keep zeros on a kernel (products, sums of like kernels)",
)
Axes = tuple[Axis, ...]


def _elementwise(combine: Callable[[Context, Sequence[Value], Axes], Value]) -> Rule:
    """Make a rule from a function that combines the operands into an array with these axes."""

    def rule(context: Context, equation: Equation, *values: Value) -> Value:
        axes = joined_axes(context, equation, values)
        refuse_mean(context, values, axes)
        return combine(context, values, axes)

    return rule


def joined_axes(context: Context, equation: Equation, values: Sequence[Value]) -> Axes:
    """Return the axes of an elementwise result; operands of size 1 are broadcast."""
    joined = []
    for i, size in enumerate(equation.out_sizes[0]):
        operands = zip(values, equation.in_sizes, strict=True)
        meeting = [v.axes[i] for v, sizes in operands if sizes and not is_broadcast(sizes[i], size)]
        joined.append(unified(context, meeting) if meeting else context.fresh(size, const=True))
    return tuple(joined)


def unified(context: Context, axes: Sequence[Axis]) -> Axis:
    """Unify the orders of axes that meet; the result is constant if all of them are."""
    for axis in axes[1:]:
        context.orders.unify(axes[0].term, axis.term)
    return Axis(axes[0].term, all(axis.const for axis in axes))


def is_broadcast(before: Size, after: Size) -> bool:
    """Return whether an axis of one entry in both networks is broadcast to another size."""
    if before in (after, Size(1, 1)):
        return before != after
    raise Inseparable(
        f"an axis of {before} is broadcast to one of {after}: a sub-network's one entry serves "
        "for all, but in the global network each has its own",
        "let an axis have one entry in both networks, or as many as the axis it meets",
    )


def _blended(values: Sequence[Value], **changes: Any) -> Value:
    """Return a result that is not linear in any leaf, with what it inherits from its operands."""
    reason = next((v.averaged_because for v in values if v.averaged_because), "")
    from_params = all(v.from_params for v in values)
    return dataclasses.replace(Value(averaged_because=reason, from_params=from_params), **changes)


def refuse_mean(context: Context, values: Sequence[Value], axes: Iterable[Axis]) -> None:
    """Refuse a mean beside channels: it has no entries for each sub-network, even equal ones."""
    means = [value for value in values if value.averaged_because]
    if means and any(map(context.grows, axes)):
        raise mean_refused(means[0], "it meets the sub-networks' channels")


def _refuse_nonlinear(values: Sequence[Value]) -> None:
    """Refuse means and arrays that hold the head's 1/K, which allow linear operations only."""
    for value in values:
        if value.averaged_because:
            raise mean_refused(value, "the operation is not linear")
        if value.power:
            raise Inseparable(
                "a leaf that the head divides by K is used here undivided (tied parameters)",
                "give the head a kernel of its own",
            )


def _refuse_other_blocks(context: Context, values: Sequence[Value], axes: Axes) -> None:
    """Refuse operands that do not have the blocks of a block-diagonal result."""
    varying = context.varying_axes(axes)
    others = (v for v in values if context.varying_axes(v.axes) != varying and not v.zero)
    if len(varying) > 1 and any(others):
        raise Inseparable(*_OFF_DIAGONAL)


def nonlinear(context: Context, values: Sequence[Value], axes: Axes) -> Value:
    """Combine arrays by a function that may be non-zero at zero."""
    _refuse_nonlinear(values)
    if len(context.varying_axes(axes)) > 1:
        raise Inseparable(*_OFF_DIAGONAL)
    return _blended(values, axes=axes)


def _zero_keeping(context: Context, values: Sequence[Value], axes: Axes) -> Value:
    """Combine arrays by a function with f(0, …, 0) = 0: block-diagonal kernels stay so."""
    _refuse_nonlinear(values)
    _refuse_other_blocks(context, values, axes)
    return _blended(values, axes=axes, zero=all(v.zero for v in values))


def _sum(context: Context, values: Sequence[Value], axes: Axes) -> Value:
    """Add arrays: linear in all of them together; zeros are neutral."""
    _refuse_other_blocks(context, values, axes)
    terms = [v for v in values if not v.zero] or list(values)
    if len({v.power for v in terms}) > 1:
        raise Inseparable(
            "an array that holds the head's 1/K meets one that does not",
            "let the merging layer be the last one, and give it a kernel of its own",
        )
    linear = tuple(leaf for leaf in terms[0].linear if all(leaf in v.linear for v in terms))
    zero = all(v.zero for v in values)
    return _blended(values, axes=axes, power=terms[0].power, linear=linear, zero=zero)


def one_of(context: Context, values: Sequence[Value], axes: Axes) -> Value:
    """Make an array whose every entry is taken from one of these arrays."""
    refuse_mean(context, values, axes)
    return _sum(context, values, axes)


def either(context: Context, values: Sequence[Value]) -> Value:
    """Make an array that is one of these: a branch's result, or the state of a loop."""
    axes = zip(*(value.axes for value in values), strict=True)
    return one_of(context, values, tuple(unified(context, meeting) for meeting in axes))


def _linear(context: Context, values: Sequence[Value], axes: Axes) -> Value:
    return values[0].with_axes(axes)


def _product(context: Context, values: Sequence[Value], axes: Axes) -> Value:
    if are_apart(context.varying_axes(v.axes) for v in values):
        raise Inseparable(
            "it multiplies every channel with every channel, of other sub-networks too",
            "take such products within a sub-network's heads or groups",
        )
    return product_of(values).with_axes(axes)


def product_of(values: Sequence[Value]) -> Value:
    """Multiply arrays: linear in each operand; the axes are left to the caller."""
    means = [v for v in values if v.averaged_because]
    if len(means) > 1:
        raise mean_refused(means[0], "a product of two means is not linear")
    # A kernel's leaves come before those of the array that it is applied to.
    leaves = [leaf for v in sorted(values, key=lambda v: not v.from_params) for leaf in v.linear]
    return _blended(
        values,
        power=sum(v.power for v in values),
        linear=tuple(leaf for leaf in leaves if leaves.count(leaf) == 1),
        zero=any(v.zero for v in values),
    )


def _quotient(context: Context, values: Sequence[Value], axes: Axes) -> Value:
    over, under = values
    if under.averaged_because:
        raise mean_refused(under, "a quotient is not linear in its denominator")
    above, below = (context.varying_axes(v.axes) for v in values)
    if len(above | below) > 1 and (len(below) > 1 or not below <= above):
        raise Inseparable(*_OFF_DIAGONAL)
    linear = tuple(leaf for leaf in over.linear if leaf not in under.linear)
    power = over.power - under.power
    return _blended(values, axes=axes, power=power, linear=linear, zero=over.zero)


_NAMES = {
    _sum: "add sub add_any complex",
    _linear: "neg copy copy_p real imag conj sharding_constraint stop_gradient name",
    _product: "mul",
    _quotient: "div",
    _zero_keeping: (
        "max min abs sign sqrt cbrt square tanh sin tan asin atan sinh asinh atanh erf expm1 log1p "
        "round floor ceil"
    ),
    nonlinear: (
        "exp exp2 log log2 logistic one_minus_square cos acos acosh cosh rsqrt erfc erf_inv lgamma "
        "digamma igamma igammac polygamma zeta bessel_i0e bessel_i1e pow rem atan2 nextafter clamp "
        "is_finite not and or xor eq ne lt le gt ge shift_left shift_right_logical "
        "shift_right_arithmetic population_count clz"
    ),
}
for _combine, _names in _NAMES.items():
    RULES.update(dict.fromkeys(_names.split(), _elementwise(_combine)))


@register_rule("integer_pow")
def _integer_pow(context: Context, equation: Equation, value: Value) -> Value:
    combine = _zero_keeping if equation.same("y") > 0 else nonlinear
    return combine(context, [value], value.axes)


@register_rule("convert_element_type")
def _cast(context: Context, equation: Equation, value: Value) -> Value:
    dtype = equation.same("new_dtype")
    return _rounded(value, jnp.finfo(dtype).nmant if jnp.issubdtype(dtype, jnp.inexact) else 0)


@register_rule("reduce_precision")
def _reduce_precision(context: Context, equation: Equation, value: Value) -> Value:
    # The range of float16 counts as unlimited; numbers outside of it would become infinite.
    has_range = equation.same("exponent_bits") >= jnp.finfo(jnp.float16).nexp
    return _rounded(value, equation.same("mantissa_bits") if has_range else 0)


def _rounded(value: Value, bits: int) -> Value:
    """Round to a mantissa of so many bits; from bfloat16's 7 bits on this counts as exact."""
    if bits >= jnp.finfo(jnp.bfloat16).nmant:
        return value
    _refuse_nonlinear([value])
    return dataclasses.replace(value, linear=())


@register_rule("bitcast_convert_type")
def _bitcast(context: Context, equation: Equation, value: Value) -> Value:
    if len(equation.in_sizes[0]) != len(equation.out_sizes[0]):
        raise Inseparable("it takes entries apart into bytes", "use a type of as many bits")
    return nonlinear(context, [value], value.axes)


@register_rule("device_put", "optimization_barrier")
def _identity(context: Context, equation: Equation, *values: Value) -> list[Value]:
    return list(values)


@register_rule("select_n")
def _select(context: Context, equation: Equation, which: Value, *cases: Value) -> Value:
    if which.averaged_because:
        raise mean_refused(which, "a choice is not linear in its condition")
    chosen = one_of(context, cases, joined_axes(context, equation, (which, *cases)))
    return dataclasses.replace(chosen, from_params=chosen.from_params and which.from_params)
