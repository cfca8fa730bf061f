"""Abstract values: how an array of the global network holds the K sub-networks' arrays.

* No growing axis: the array is the same in all networks (an image, a constant), or, where
  `averaged_because` is set, the mean of the sub-networks' arrays (the head's bias, and everything
  after the head).
* One growing axis along which it varies: the sub-networks' arrays stand side by side.
* Several: it is zero wherever the axes' sub-networks differ, as a block-diagonal kernel is.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from dcjax._layout.layout import Path
from dcjax._tracing.errors import NARROWABLE, Inseparable
from dcjax._tracing.factors import ONE, Scale
from dcjax._tracing.unify import Orders, Size, Term


class Axis(NamedTuple):
    """The order of an axis, and whether the array is constant along it."""

    term: Term
    const: bool = False


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of the global network, in terms of the sub-networks' arrays.

    Attributes:
      axes: the order of each axis.
      averaged_because: the reason, in words, why the array is the mean of the sub-networks' arrays:
        these differ, and no axis tells them apart. Empty for all other arrays.
      power: the global blocks are the sub-networks' arrays times K**power. It is −1 for the head's
        kernel and for products with it.
      linear: the leaves in each of which the array is linear, the last factor first.
      leaves: the leaves that an array is made of, as long as they have not met features.
      from_params: whether it depends on parameters and constants only.
      zero: whether it is zero everywhere.
      scale: the global blocks are the sub-networks' arrays times it; the walk sets it.
    """

    axes: tuple[Axis, ...] = ()
    averaged_because: str = ""
    power: int = 0
    linear: tuple[Path, ...] = ()
    leaves: frozenset[Path] = frozenset()
    from_params: bool = True
    zero: bool = False
    scale: Scale = ONE

    def with_axes(self, axes: Iterable[Axis]) -> "Value":
        """Return the same array with its axes moved, merged or split."""
        return dataclasses.replace(self, axes=tuple(axes))


class Equation(NamedTuple):
    """One operation, in the sub-network and in the global network.

    `walk(narrow, wide, values, *place)` walks a pair of jaxprs that the operation holds (the body
    of a loop) and returns their results' values.
    """

    name: str
    path: str
    narrow: dict[str, Any]
    wide: dict[str, Any]
    in_sizes: tuple[tuple[Size, ...], ...]
    out_sizes: tuple[tuple[Size, ...], ...]
    walk: Callable[..., list[Value]]

    def same(self, name: str) -> Any:
        """Return a parameter, which must be equal in both networks."""
        narrow, wide = self.both(name)
        if narrow != wide and (narrow == narrow or wide == wide):  # two NaNs count as equal
            raise Inseparable(
                f"its {name} depends on the width: {narrow} in a sub-network, {wide} in the "
                "global network",
                "make it independent of the width",
            )
        return narrow

    def both(self, name: str) -> tuple[Any, Any]:
        """Return a parameter in the sub-network and in the global network."""
        return self.narrow[name], self.wide[name]

    def sizes(self, name: str) -> list[Size]:
        """Return a parameter that has one size for each axis."""
        return list(map(Size, *self.both(name)))


class Context(NamedTuple):
    """The means that every rule may use.

    Attributes:
      orders: the unifier.
      merge: asks that a head be divided by K, for (equation, values, power); returns the reason why
        the result is a mean.
      like: applies the rule of another primitive, for (name, equation, *values).
    """

    orders: Orders
    merge: Callable[[Equation, Sequence[Value], int], str]
    like: Callable[..., Any]

    def grows(self, axis: Axis) -> bool:
        """Return whether the axis is longer in the global network."""
        return self.orders.size(axis.term).grows

    def varying_axes(self, axes: Sequence[Axis]) -> frozenset[int]:
        """Return the indices of the growing axes along which an array with these axes varies."""
        return frozenset(i for i, a in enumerate(axes) if not a.const and self.grows(a))

    def fresh(self, size: Size, const: bool = False) -> Axis:
        """Return a new axis, of unknown order if it grows."""
        return Axis(self.orders.fresh(size), const)

    def fixed(self, size: Size) -> Axis:
        """Return a new axis made of axes that do not grow; it must not grow either."""
        if size.grows:
            raise Inseparable(
                f"its size depends on the width ({size}), but that axis holds no channels",
                "take as many in both networks, and let only channels grow",
            )
        return self.fresh(size)


def are_apart(factors: Iterable[frozenset[Any]]) -> bool:
    """Return whether both factors of a product vary, and along no common axis."""
    varying = [axes for axes in factors if axes]
    return bool(varying) and not frozenset.intersection(*varying)


def mean_refused(value: Value, problem: str) -> Inseparable:
    """Return the error for a mean where each sub-network's array is needed."""
    return Inseparable(
        f"{problem}, but one array stands for all sub-networks here: {value.averaged_because}",
        f"let it grow with the width (a field that decompose divides, or {NARROWABLE}; one entry a "
        "channel, one kernel for each group of channels), or let the merging layer be the last "
        "one, with only linear operations after it",
    )
