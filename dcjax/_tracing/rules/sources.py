"""Rules for arrays that come from no other array: counted and random numbers."""

from dcjax._tracing.errors import Inseparable
from dcjax._tracing.rules.indexing import refuse_differing_positions
from dcjax._tracing.rules.registry import register_rule
from dcjax._tracing.value import Context, Equation, Value


@register_rule("iota")
def _iota(context: Context, equation: Equation) -> Value:
    sizes = equation.out_sizes[0]
    if sizes[equation.same("dimension")].grows:
        raise Inseparable(
            "it numbers the channels, which are others in the global network",
            "make it a parameter, or let it number an axis that does not grow",
        )
    return Value(tuple(context.fresh(size, const=True) for size in sizes))


@register_rule("platform_index")
def _platform_index(context: Context, equation: Equation) -> Value:
    return Value()  # of the branch that `lax.platform_dependent` takes


@register_rule("random_seed", "random_wrap", "random_unwrap", "random_bits", "random_split")
@register_rule("random_fold_in", "threefry2x32", "random_clone", "random_gamma")
@register_rule("rng_bit_generator")
def _random(context: Context, equation: Equation, *values: Value) -> list[Value]:
    refuse_differing_positions(context, *values)
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
