"""Rules for operations that hold jaxprs: calls, loops, branches."""

from collections.abc import Callable, Sequence
from typing import Any

from dcjax._tracing.errors import Inseparable
from dcjax._tracing.jaxprs import CALLS, inner_program, scan_counts
from dcjax._tracing.rules.elementwise import either
from dcjax._tracing.rules.registry import register_rule
from dcjax._tracing.unify import Size
from dcjax._tracing.value import Context, Equation, Value


@register_rule(*CALLS)
def _call(context: Context, equation: Equation, *operands: Value) -> list[Value]:
    return equation.walk(inner_program(equation.narrow), inner_program(equation.wide), operands)


@register_rule("debug_callback", "debug_print")
def _debug(context: Context, equation: Equation, *operands: Value) -> list[Value]:
    return []  # jax.debug.print and callback: no array depends on them


@register_rule("scan")
def _scan(context: Context, equation: Equation, *operands: Value) -> list[Value]:
    consts, carried = scan_counts(equation.narrow)
    length = equation.same("length")
    fixed, carry = operands[:consts], operands[consts : consts + carried]
    sliced = [v.with_axes(v.axes[1:]) for v in operands[consts + carried :]]

    def body(state: Sequence[Value]) -> list[Value]:
        return equation.walk(*equation.both("jaxpr"), [*fixed, *state, *sliced])

    state, results = _until_stable(context, body, carry)
    rounds = context.fresh(Size(length, length))
    return [*state, *(v.with_axes((rounds, *v.axes)) for v in results[carried:])]


@register_rule("while")
def _while(context: Context, equation: Equation, *operands: Value) -> list[Value]:
    of_cond, of_body = equation.same("cond_nconsts"), equation.same("body_nconsts")
    fixed, carry = operands[of_cond : of_cond + of_body], operands[of_cond + of_body :]

    def body(state: Sequence[Value]) -> list[Value]:
        return equation.walk(*equation.both("body_jaxpr"), [*fixed, *state], 1)

    state, _ = _until_stable(context, body, carry)
    goes_on = equation.walk(*equation.both("cond_jaxpr"), [*operands[:of_cond], *state], 0)
    _refuse_differing_choice(context, goes_on[0])
    return state


@register_rule("cond")
def _cond(context: Context, equation: Equation, *operands: Value) -> list[Value]:
    choice, *rest = operands
    _refuse_differing_choice(context, choice)
    narrow, wide = equation.both("branches")
    if len(narrow) != len(wide):
        raise Inseparable(
            f"it has {len(narrow)} branches in a sub-network, {len(wide)} in the global network",
            "make their number independent of the width",
        )
    # `lax.platform_dependent` has several ways to compute one thing. The last one, the default,
    # stands for all of them; `verify` runs the one of this platform.
    first = len(narrow) - 1 if equation.narrow.get("branches_platforms") else 0
    branches = [equation.walk(narrow[i], wide[i], rest, i) for i in range(first, len(narrow))]
    return [either(context, values) for values in zip(*branches, strict=True)]


def _refuse_differing_choice(context: Context, choice: Value) -> None:
    """Refuse a branch or an end of a loop that is not the same in all networks."""
    if choice.averaged_because or context.varying_axes(choice.axes):
        raise Inseparable(
            "the way that it takes depends on the sub-networks' features", "use jnp.where"
        )


def _until_stable(
    context: Context, body: Callable[[Sequence[Value]], list[Value]], carry: Sequence[Value]
) -> tuple[list[Value], list[Value]]:
    """Run a loop's body until what is known of the carried arrays no longer changes."""
    while True:
        results = body(carry)
        state = [either(context, pair) for pair in zip(carry, results, strict=False)]
        if list(map(_known, state)) == list(map(_known, carry)):
            return state, results
        carry = state


def _known(value: Value) -> tuple[Any, ...]:
    """Return what a round may change in a carried value; orders are solved in place."""
    consts = tuple(axis.const for axis in value.axes)
    return consts, value.averaged_because, value.power, value.linear, value.zero
