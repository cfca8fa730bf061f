"""Rules for elementwise operations: what stays linear, and which keep the zeros between blocks."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from dcjax._tracing.rules.registry import RULES, Rule, register_rule
from dcjax._tracing.unify import Size
from dcjax._tracing.value import Axis, Context, Equation, Inseparable, Value, refuse_own, together

OFF_DIAGONAL = (
    "the zeros between the sub-networks' blocks would not stay zero",
    "use only operations that keep zeros on a kernel (products, sums of like kernels)",
)


def _blended(values: Sequence[Value], **changes: object) -> Value:
    """What a result inherits from its operands when the operation is not linear in any leaf."""
    own = next((v.own for v in values if v.own), "")
    from_params = all(v.from_params for v in values)
    return dataclasses.replace(Value(own=own, from_params=from_params), **changes)


def join(context: Context, equation: Equation, values: Sequence[Value]) -> tuple[Axis, ...]:
    """The axes of an elementwise result; operands of size 1 are broadcast."""
    joined = []
    for i, size in enumerate(equation.out_sizes[0]):
        meeting = [
            value.axes[i]
            for value, sizes in zip(values, equation.in_sizes, strict=True)
            if sizes and not is_broadcast(sizes[i], size)
        ]
        for axis in meeting[1:]:
            context.orders.unify(meeting[0].term, axis.term)
        term = meeting[0].term if meeting else context.orders.fresh(size)
        joined.append(Axis(term, all(axis.const for axis in meeting)))
    return tuple(joined)


def is_broadcast(before: Size, after: Size) -> bool:
    """Whether an axis of one entry is spread over one of another size, in both networks alike."""
    if before in (after, Size(1, 1)):
        return before != after
    raise Inseparable(
        f"an axis of {before} is spread over one of {after}: one entry of a sub-network's serves "
        "for all, in the global network each has its own",
        "let an axis have one entry in both networks, or as many as what it meets",
    )


def _elementwise(combine: Callable[[Context, Sequence[Value], frozenset[int]], Value]) -> Rule:
    """A rule from a function that says what the combined array is once its axes are joined."""

    def rule(context: Context, equation: Equation, *values: Value) -> Value:
        axes = join(context, equation, values)
        _refuse_to_spread(context, values, axes)
        return combine(context, values, context.spread(Value(axes))).with_axes(axes)

    return rule


def _refuse_to_spread(context: Context, values: Sequence[Value], axes: Sequence[Axis]) -> None:
    """A mean has no entry for each sub-network, even where these would all be the same."""
    for value in values:
        if value.own and any(map(context.grows, axes)):
            raise refuse_own(value, "it meets the sub-networks' channels")


def _refuse_nonlinear(values: Sequence[Value]) -> None:
    """Nothing that is a mean, or scaled by 1/K, goes through a nonlinear operation."""
    for value in values:
        if value.own:
            raise refuse_own(value, "the operation is not linear")
        if value.power:
            raise Inseparable(
                "a leaf that the head divides by K is used here undivided (tied parameters)",
                "give the head a kernel of its own",
            )


def nonlinear(context: Context, values: Sequence[Value], spread: frozenset[int]) -> Value:
    _refuse_nonlinear(values)
    if len(spread) > 1:
        raise Inseparable(*OFF_DIAGONAL)
    return _blended(values)


def _zero_keeping(context: Context, values: Sequence[Value], spread: frozenset[int]) -> Value:
    """f(0, …, 0) = 0: a block-diagonal kernel stays one."""
    _refuse_nonlinear(values)
    _same_blocks(context, values, spread)
    return _blended(values, zero=all(v.zero for v in values))


def _same_blocks(context: Context, values: Sequence[Value], spread: frozenset[int]) -> None:
    if len(spread) > 1 and any(context.spread(v) != spread and not v.zero for v in values):
        raise Inseparable(*OFF_DIAGONAL)


def _additive(context: Context, values: Sequence[Value], spread: frozenset[int]) -> Value:
    _same_blocks(context, values, spread)
    return sum_of(values)


def one_of(context: Context, values: Sequence[Value], axes: Sequence[Axis]) -> Value:
    """An array whose every entry is an entry of one of these; linear in all of them together."""
    _refuse_to_spread(context, values, axes)
    _same_blocks(context, values, context.spread(Value(tuple(axes))))
    return sum_of(values).with_axes(axes)


def either(context: Context, values: Sequence[Value]) -> Value:
    """An array that is one of these, all of one shape: a branch's result, a loop's state."""
    axes = []
    for group in zip(*(value.axes for value in values), strict=True):
        for axis in group[1:]:
            context.orders.unify(group[0].term, axis.term)
        axes.append(Axis(group[0].term, all(axis.const for axis in group)))
    return one_of(context, values, axes)


def sum_of(values: Sequence[Value]) -> Value:
    """Linear in all operands together; zeros are neutral."""
    terms = [v for v in values if not v.zero] or list(values)
    if len({v.power for v in terms}) > 1:
        raise Inseparable(
            "an array that holds the head's 1/K meets one that does not",
            "let the merging layer be the last one, and give it a kernel of its own",
        )
    linear = [leaf for leaf in terms[0].linear if all(leaf in v.linear for v in terms)]
    zero = all(v.zero for v in values)
    return _blended(values, power=terms[0].power, linear=tuple(linear), zero=zero)


def _linear(context: Context, values: Sequence[Value], spread: frozenset[int]) -> Value:
    return values[0]


def _product(context: Context, values: Sequence[Value], spread: frozenset[int]) -> Value:
    classes = together(*(context.spread(v) for v in values))
    if len(classes) > 1:
        raise Inseparable(
            "it multiplies every channel with every channel, of other sub-networks too",
            "take such products within a sub-network's own heads or groups",
        )
    return product_of(values)


def product_of(values: Sequence[Value]) -> Value:
    """Linear in each operand."""
    if sum(bool(v.own) for v in values) > 1:
        raise refuse_own(next(v for v in values if v.own), "a product of two means is not linear")
    return _blended(
        values,
        power=sum(v.power for v in values),
        linear=_leaves_of_product(values),
        zero=any(v.zero for v in values),
    )


def _leaves_of_product(values: Sequence[Value]) -> tuple[tuple[str, ...], ...]:
    """The leaves in which a product is linear, a kernel's before those of what it is applied to."""
    ordered = sorted(values, key=lambda v: not v.from_params)
    leaves = [leaf for v in ordered for leaf in v.linear]
    return tuple(leaf for leaf in leaves if leaves.count(leaf) == 1)


def _quotient(context: Context, values: Sequence[Value], spread: frozenset[int]) -> Value:
    over, under = values
    if under.own:
        raise refuse_own(under, "a quotient is not linear in its denominator")
    below = context.spread(under)
    if len(spread) > 1 and (len(below) > 1 or not below <= context.spread(over)):
        raise Inseparable(*OFF_DIAGONAL)
    linear = tuple(leaf for leaf in over.linear if leaf not in under.linear)
    return _blended(values, power=over.power - under.power, linear=linear, zero=over.zero)


@register_rule("convert_element_type")
def _cast(context: Context, equation: Equation, value: Value) -> Value:
    """Linear between floating types; a rounding to integers or booleans is not."""
    dtype = equation.narrow["new_dtype"]
    return _rounded(value, jnp.finfo(dtype).nmant if jnp.issubdtype(dtype, jnp.inexact) else 0)


@register_rule("reduce_precision")
def _reduce_precision(context: Context, equation: Equation, value: Value) -> Value:
    """To float16's range and more the exponent counts as exact; outside there is no rounding."""
    if equation.same("exponent_bits") < jnp.finfo(jnp.float16).nexp:
        return _rounded(value, 0)
    return _rounded(value, equation.same("mantissa_bits"))


def _rounded(value: Value, bits: int) -> Value:
    """Rounding is not linear; to bfloat16's 7 bits and more it counts as exact, as everywhere."""
    if bits >= jnp.finfo(jnp.bfloat16).nmant:
        return value
    _refuse_nonlinear([value])
    return dataclasses.replace(value, linear=())


@register_rule("bitcast_convert_type")
def _bitcast(context: Context, equation: Equation, value: Value) -> Value:
    """Random numbers are made of bits."""
    if len(equation.in_sizes[0]) != len(equation.out_sizes[0]):
        raise Inseparable("it takes entries apart into bytes", "use a type of as many bits")
    return nonlinear(context, [value], context.spread(value)).with_axes(value.axes)


@register_rule("device_put")
def _device_put(context: Context, equation: Equation, *values: Value) -> list[Value]:
    return list(values)


@register_rule("select_n")
def _select(context: Context, equation: Equation, which: Value, *cases: Value) -> Value:
    """Linear in the cases; the choice itself must not be a mean."""
    if which.own:
        raise refuse_own(which, "a choice is not linear in its condition")
    axes = join(context, equation, (which, *cases))
    chosen = one_of(context, cases, axes)
    return dataclasses.replace(chosen, from_params=chosen.from_params and which.from_params)


_KINDS = {
    _additive: "add sub add_any complex",
    _linear: ("neg copy copy_p real imag conj sharding_constraint stop_gradient name"),
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
for _kind, _names in _KINDS.items():
    RULES.update(dict.fromkeys(_names.split(), _elementwise(_kind)))


@register_rule("integer_pow")
def _integer_pow(context: Context, equation: Equation, value: Value) -> Value:
    combine = _zero_keeping if equation.same("y") > 0 else nonlinear
    return combine(context, [value], context.spread(value)).with_axes(value.axes)
