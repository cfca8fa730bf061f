"""Numbers that a network computes from its width: they matter where the two networks' differ.

`h[i]` wraps negative indices around with the sizes of all axes, that of the channels among them,
and then takes 0 all the same. Such numbers are followed until an operation takes one that differs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from dcjax._tracing.align import dtype_of, same_constants
from dcjax._tracing.jaxprs import PROGRAMS

Pair = tuple[np.ndarray, np.ndarray]


class Scalars:
    """The scalars that a pair of jaxprs computes from literals alone.

    Attributes:
      differing: the variables whose numbers differ, with both numbers.
    """

    def __init__(self) -> None:
        self.differing: dict[Any, Pair] = {}
        self._known: dict[Any, Callable[[], Pair]] = {}

    def follow(self, narrow: Any, wide: Any) -> Pair | None:
        """Return both results of an equation with an operand that differs; note other numbers."""
        operands = [self._number(n, w) for n, w in zip(narrow.invars, wide.invars, strict=True)]
        known = [number for number in operands if number]
        scalar = len(narrow.outvars) == 1 and _is_scalar(narrow.outvars[0])
        if len(known) < len(operands) or not scalar or narrow.primitive.name in PROGRAMS:
            return None

        # Compiling even one operation takes milliseconds: only what matters is computed.
        @functools.cache
        def number() -> Pair:
            pairs = [operand() for operand in known]
            with jax.ensure_compile_time_eval():
                n, w = (
                    np.asarray(eqn.primitive.bind(*(pair[i] for pair in pairs), **eqn.params))
                    for i, eqn in enumerate((narrow, wide))
                )
            return n, w

        self._known[narrow.outvars[0]] = number
        if all(map(self._is_same, narrow.invars, wide.invars)):
            return None
        n, w = number()
        if n.dtype != w.dtype or not same_constants(n, w):
            self.differing[narrow.outvars[0]] = n, w
        return n, w

    def _number(self, narrow: Any, wide: Any) -> Callable[[], Pair] | None:
        if not isinstance(narrow, jex.Literal):
            return self._known.get(narrow)
        if not _is_scalar(narrow):
            return None
        n, w = (np.asarray(literal.val, dtype_of(literal)) for literal in (narrow, wide))
        return lambda: (n, w)

    def _is_same(self, narrow: Any, wide: Any) -> bool:
        if isinstance(narrow, jex.Literal):
            return same_constants(narrow.val, wide.val)
        return narrow not in self.differing


def _is_scalar(var: Any) -> bool:
    """Return whether a variable is a number, no random key."""
    return getattr(var.aval, "shape", None) == () and isinstance(dtype_of(var), np.dtype)
