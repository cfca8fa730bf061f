"""Decomposition of a network along its width."""

import dataclasses
import math
from collections.abc import Callable, Sequence, Set
from typing import Any

import flax.linen as nn

from dcjax._checks import check_subnets, shown
from dcjax._linen.grouped import Groups, regrouped
from dcjax._linen.under import how_of, not_a_module

DEFAULT_FIELDS = ("width",)


def decompose(network: Any, subnets: int, fields: Sequence[str] = DEFAULT_FIELDS) -> Any:
    """Return the sub-network of a network: the same module, of the same depth, 1/K as wide.

    Divides the dataclass fields that carry width. A module that defines `narrow(subnets)` returns
    its sub-network itself, which serves nested configurations; it may call that of other modules.

    Args:
      network: a Flax Linen module (any dataclass with the fields will do).
      subnets: K ≥ 1. K = 1 gives the network itself.
      fields: names of the fields to divide, each a width (int), a multiplier of widths (float), or
        a sequence of them.

    Returns:
      A module of the same class; of a grouped network (see `grouped`) the plain sub-network.

    Raises:
      ValueError: K is below 1, or does not divide all widths, or a width is below 1; names each
        field, its value and K. No fields are named.
      TypeError: the module has no such field, or the field holds no numbers; `narrow` gives no
        module.

    >>> import dcjax
    >>> network = dcjax.models.ResNet(depth=32, width=64, num_classes=10)
    >>> dcjax.decompose(network, 4).width
    16

    References:
      L. Gu, W. Zhang, J. Liu, X.-C. Cai, ETNA 56 (2022) 157–186.
    """
    subnets = check_subnets(subnets)
    if not _is_module(network):
        raise not_a_module(network)
    if subnets == 1:
        return network
    if isinstance(how_of(network), Groups):
        return regrouped(network, subnets, lambda bare: decompose(bare, subnets, fields))
    own = getattr(type(network), "narrow", None)
    if callable(own):
        with nn.intercept_methods(_without_parent):
            subnet = own(network, subnets)
        if not _is_module(subnet):
            raise TypeError(
                f"{type(network).__name__}.narrow({subnets}) must return the sub-network's "
                f"module, got {shown(subnet)}"
            )
        return subnet
    fields = _names(fields)
    names = {f.name for f in dataclasses.fields(network) if f.init}
    known = names - {"parent", "name"}
    missing = [name for name in fields if name not in known]
    if missing:
        raise TypeError(
            f"{type(network).__name__} has no field {', '.join(missing)}; its fields are "
            f"{', '.join(sorted(known))}. Name those that carry width with fields=(…), define "
            "narrow(self, subnets) on the module, or take dcjax.narrowable(network, keep=(…)) for "
            "widths that are numbers in its code"
        )
    wrong: list[str] = []
    divided = {name: _divided(name, getattr(network, name), subnets, wrong) for name in fields}
    if wrong:
        raise ValueError(
            f"{subnets} sub-networks do not divide {', '.join(wrong)}: expected multiples of "
            f"{subnets}, or a number of sub-networks that divides all widths"
        )
    # A Flax module that is another's field has a parent; the copy is nobody's yet.
    free = {"parent": None} if "parent" in names else {}
    return dataclasses.replace(network, **divided, **free)


def _without_parent(
    method: Callable[..., Any], args: Any, kwargs: Any, _: nn.module.InterceptorContext
) -> Any:
    """Call `narrow`, which may call that of other modules, as if it were no method of Flax.

    Flax makes a module that is made inside a method the child of the module on top of its stack.
    """
    stack = nn.module._context.module_stack
    stack.append(None)
    try:
        return method(*args, **kwargs)
    finally:
        stack.pop()


def _is_module(network: Any) -> bool:
    return dataclasses.is_dataclass(network) and not isinstance(network, type)


def _names(fields: Any) -> tuple[str, ...]:
    names = (fields,) if isinstance(fields, str) else fields
    if not (isinstance(names, (Sequence, Set)) and all(isinstance(name, str) for name in names)):
        raise TypeError(f'fields must be names, such as fields=("width",), got {shown(fields)}')
    if not names:
        raise ValueError(
            'fields is empty; name the fields that carry width, such as fields=("width",)'
        )
    return tuple(names)


def _divided(name: str, value: Any, subnets: int, wrong: list[str]) -> Any:
    """Return a width, or a sequence of widths, divided by K; note those that K does not divide."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        items = enumerate(value)
        divided = [_divided(f"{name}[{i}]", item, subnets, wrong) for i, item in items]
        return divided if isinstance(value, list) else tuple(divided)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"field {name} must be a width (an int) or a multiplier of widths (a float), or a "
            f"sequence of them, got {value!r}"
        )
    if isinstance(value, float):
        if not 0 < value < math.inf:
            raise ValueError(f"field {name} must be a positive multiplier of widths, got {value}")
        return value / subnets
    if value < 1:
        raise ValueError(f"field {name} must be a width of at least 1, got {value}")
    if value % subnets:
        near = [w for w in (value - value % subnets, value + -value % subnets) if w > 0]
        wrong.append(f"{name}={value} (near: {', '.join(map(str, near))})")
    return value // subnets
