"""The table of rules: how each primitive carries the sub-networks' places to its results.

A rule is a function `(context, equation, *values) -> value` (or a list of values). It unifies the
orders that must agree, and raises `Inseparable` where the global network cannot compute what the
sub-networks compute.
"""

from collections.abc import Callable

from dcjax._tracing.value import Value

Rule = Callable[..., "Value | list[Value]"]
RULES: dict[str, Rule] = {}


def register_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for one or more primitives, for networks that use others than those known.

    The decorated function gets the context (the unifier), the equation (the operation's parameters
    and sizes in both networks) and a value for each operand, and returns the results' value(s). A
    primitive that works entry by entry returns its operand's, as here; what others do is to be seen
    in `dcjax/_rules`, whose names may still change.

    >>> from dcjax import register_rule
    >>> @register_rule("my_elementwise_primitive")
    ... def _(context, equation, value):
    ...     return value
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register
