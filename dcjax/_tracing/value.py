"""What is known of an array while two networks are traced side by side.

A `Value` says how an array of the global network holds the K sub-networks' arrays:

* no growing axis: the same in all networks (an image, a constant), or, where `own` is set, the mean
  of the sub-networks' values (the head's bias; everything after the head);
* one growing axis along which it varies: the sub-networks' arrays stand side by side;
* several: zero wherever the axes' sub-networks differ, as a block-diagonal kernel is.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from dcjax._layout.layout import Path
from dcjax._tracing.unify import Orders, Size, Term


class Inseparable(Exception):
    """An operation that no composition can make exact, and what to do about it."""

    def __init__(self, problem: str, remedy: str):
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class Axis(NamedTuple):
    """An axis' order, and whether the array is the same for all sub-networks along it."""

    term: Term
    const: bool = False


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of the global network, in terms of the sub-networks' arrays.

    Attributes:
      axes: the order of each axis.
      own: where the sub-networks' values differ though no axis tells them apart, the reason, in
        words; the global value is then their mean. Empty otherwise.
      power: the global blocks are the sub-networks' arrays times K**power; the head's kernel and
        what it touches has −1.
      linear: the leaves in each of which the array is linear, the last factor first.
      from_params: whether only parameters and constants went into it.
      zero: whether it is zero everywhere.
    """

    axes: tuple[Axis, ...] = ()
    own: str = ""
    power: int = 0
    linear: tuple[Path, ...] = ()
    from_params: bool = True
    zero: bool = False

    def with_axes(self, axes: Iterable[Axis]) -> "Value":
        """The same array with its axes moved, merged or split."""
        return dataclasses.replace(self, axes=tuple(axes))


class Equation(NamedTuple):
    """One operation, in the sub-network and in the global network."""

    name: str
    path: str
    narrow: dict[str, Any]
    wide: dict[str, Any]
    in_sizes: tuple[tuple[Size, ...], ...]
    out_sizes: tuple[tuple[Size, ...], ...]

    def same(self, name: str) -> Any:
        """A parameter of the operation that must not depend on the width."""
        narrow, wide = self.narrow[name], self.wide[name]
        if narrow != wide and (narrow == narrow or wide == wide):  # NaN is NaN
            raise Inseparable(
                f"its {name} depends on the width: {narrow} in a sub-network, {wide} in the "
                "global network",
                "make it independent of the width",
            )
        return narrow


class Context(NamedTuple):
    """What a rule may use: the unifier, and the way to ask for a head's 1/K."""

    orders: Orders
    merge: Callable[[Equation, Sequence[Value], int], str]

    def grows(self, axis: Axis) -> bool:
        """Whether the axis is longer in the global network."""
        return not self.orders.is_shared(axis.term)

    def spread(self, value: Value) -> frozenset[int]:
        """The growing axes along which the array varies."""
        return frozenset(
            i for i, axis in enumerate(value.axes) if not axis.const and self.grows(axis)
        )

    def fixed(self, size: Size) -> Axis:
        """A new axis made of axes that do not grow, which must not grow itself."""
        if size.grows:
            raise Inseparable(
                f"its size depends on the width ({size}), but that axis holds no channels",
                "take as many in both networks, and let only channels grow",
            )
        return Axis(self.orders.fresh(size))

    def fresh(self, size: Size, const: bool = False) -> Axis:
        """A new axis, of unknown order where it grows."""
        return Axis(self.orders.fresh(size), const)


def together(*groups: frozenset[Any]) -> list[frozenset[Any]]:
    """Groups of axes that share an axis are one: in a product their sub-networks must agree."""
    classes: list[frozenset[Any]] = []
    for group in filter(None, groups):
        touching = [c for c in classes if c & group]
        classes = [c for c in classes if not c & group]
        classes.append(group.union(*touching))
    return classes


def refuse_own(value: Value, what: str) -> Inseparable:
    """The error for an array that holds a mean where the sub-networks' own values are needed."""
    return Inseparable(
        f"{what}, but one array stands for all sub-networks here: {value.own}",
        "let it grow with the width (a field that decompose divides, one entry a channel), "
        "or let the merging layer be the last one, with only linear operations after it",
    )
