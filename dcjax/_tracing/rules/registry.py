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

    The decorated function gets the context, the equation and a value for each operand, and returns
    the value of the result, or a list of them:

    * `equation.same(name)` is a parameter, refused if it depends on the width;
      `equation.both(name)` are its values in both networks; `equation.in_sizes` and
      `equation.out_sizes` have a `Size(narrow, wide)` for every axis.
    * `value.axes` are its axes; `context.grows(axis)` tells whether one holds channels;
      `value.with_axes(axes)` moves or removes them; `context.fixed(size)` makes one that does not
      grow.
    * `context.like(name, equation, *values)` applies the rule of a primitive that dcjax knows: that
      of `"exp"` serves any nonlinear function of each entry, that of `"tanh"` one with f(0) = 0,
      that of `"neg"` a linear one.
    * `raise dcjax.Inseparable(problem, remedy)` refuses.

    A value that is returned as it came says that the primitive is linear and acts on each entry.
    [own_primitive.md](own_primitive.md) has a worked example.

    >>> import dcjax
    >>> @dcjax.register_rule("my_activation")
    ... def _(context, equation, value):
    ...     return context.like("exp", equation, value)
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register
