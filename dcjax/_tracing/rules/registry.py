"""The table of rules.

A rule is a function `(context, equation, *values) -> value` (or a list of values). It unifies the
orders that must agree, and raises `Inseparable` where the global network cannot compute what the
sub-networks compute. Parameters of the operation that are not sizes have been compared before.
"""

from collections.abc import Callable

from dcjax._tracing.value import Value

Rule = Callable[..., Value | list[Value]]
RULES: dict[str, Rule] = {}


def register_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for one or more primitives that dcjax does not know.

    The decorated function gets the context (with the unifier), the equation (the operation's
    parameters and sizes in both networks) and a value for each operand; it returns the value of the
    result, or a list of them. A primitive that works entry by entry returns its operand's value, as
    here. `dcjax/_tracing/rules/` shows the rest, under names that may still change.

    >>> from dcjax import register_rule
    >>> @register_rule("my_elementwise_primitive")
    ... def _(context, equation, value):
    ...     return value
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register
