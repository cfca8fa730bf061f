"""Decomposition of a network along its width."""

import dataclasses
from collections.abc import Callable, Sequence, Set
from typing import Any

import flax.linen as nn

from dcjax._checks import check_subnets, shown

DEFAULT_FIELDS = ("width",)


def decompose(network: Any, subnets: int, fields: Sequence[str] = DEFAULT_FIELDS) -> Any:
    """Return the sub-network of a network: the same module, of the same depth, 1/K as wide.

    Divides the dataclass fields that carry width. A module that defines `narrow(subnets)` returns
    its sub-network itself, which serves nested configurations; it may call that of other modules.

    Args:
      network: a Flax Linen module (any dataclass with the fields will do).
      subnets: K ≥ 1. K = 1 gives the network itself.
      fields: names of the fields to divide, each an int or a sequence of ints.

    Returns:
      A module of the same class.

    Raises:
      ValueError: K is below 1, or does not divide a width, or a width is below 1; names the field,
        its value and K. No fields are named.
      TypeError: the module has no such field, or the field holds no ints; `narrow` gives no module.

    >>> import dcjax
    >>> network = dcjax.models.ResNet(depth=32, width=64, num_classes=10)
    >>> dcjax.decompose(network, 4).width
    16

    References:
      L. Gu, W. Zhang, J. Liu, X.-C. Cai, ETNA 56 (2022) 157–186.
    """
    subnets = check_subnets(subnets)
    if not _is_module(network):
        raise TypeError(f"the network must be an instance of a Flax Linen module, got {network!r}")
    if subnets == 1:
        return network
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
            f"{', '.join(sorted(known))}. Name those that carry width with fields=(…), or define "
            "narrow(self, subnets) on the module"
        )
    divided = {name: _divided(name, getattr(network, name), subnets) for name in fields}
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


def _divided(name: str, value: Any, subnets: int) -> Any:
    """Return a width, or a sequence of widths, divided by K."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        divided = [_divided(f"{name}[{i}]", item, subnets) for i, item in enumerate(value)]
        return divided if isinstance(value, list) else tuple(divided)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"field {name} must be a width, an int or a sequence of ints, got {value!r}"
        )
    if value < 1:
        raise ValueError(f"field {name} must be a width of at least 1, got {value}")
    if value % subnets:
        near = [w for w in (value - value % subnets, value + -value % subnets) if w > 0]
        raise ValueError(
            f"{subnets} sub-networks do not divide {name}={value}: expected a multiple of "
            f"{subnets} (near: {', '.join(map(str, near))}), or a number of sub-networks that "
            f"divides {value}"
        )
    return value // subnets
