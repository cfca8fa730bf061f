"""The factors of leaves, which make up for numbers that depend on the width.

Every floating-point leaf has a factor, unknown at first, by which the global network's blocks are
the sub-networks' entries times it. So every array has a scale: a known number (the ratio of
numbers that depend on the width) times powers of leaves' factors. Products multiply scales, sums
need equal ones, and everything that is not linear needs 1. In logarithms these are linear
equations, which `Factors` solves one at a time.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from dcjax._layout.layout import Path
from dcjax._tracing.errors import Inseparable

# The rounding of a few float32 numbers, of which the ratios are made.
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Scale:
    """The ratio of the global blocks to the sub-networks' arrays: a number times leaves' factors.

    Attributes:
      log: the logarithm of the number.
      powers: the power of each leaf's factor.
      because: the number that depends on the width, in words.
    """

    log: float = 0.0
    powers: Mapping[Path, Fraction] = dataclasses.field(default_factory=dict)
    because: str = ""

    def plus(self, other: "Scale", times: Fraction | int = 1) -> "Scale":
        """Return this scale times a power of another."""
        if not other.powers and not other.log:
            return self
        powers = dict(self.powers)
        for leaf, power in other.powers.items():
            powers[leaf] = powers.get(leaf, Fraction(0)) + times * power
        return Scale(
            self.log + float(times) * other.log,
            {leaf: power for leaf, power in powers.items() if power},
            self.because or other.because,
        )


class Differs(Inseparable):
    """Raised where a number that depends on the width remains."""


ONE = Scale()
UNKNOWN = Scale(because="a violation")  # noted already: it makes no further ones


def ratio_of(narrow: np.ndarray, wide: np.ndarray, because: str) -> Scale | None:
    """Return the scale of a number, or None if a positive factor does not explain both."""
    if not jnp.issubdtype(narrow.dtype, jnp.floating):
        return None
    n, w = float(narrow), float(wide)
    if not (math.isfinite(n) and math.isfinite(w) and n * w > 0):
        return None
    return Scale(math.log(abs(w)) - math.log(abs(n)), because=because)


class Factors:
    """The leaves' factors: the equations between them, solved in place."""

    def __init__(self) -> None:
        self._known: dict[Path, Scale] = {}
        self._wishes: list[Scale] = []

    def resolve(self, scale: Scale) -> Scale:
        """Return a scale in terms of factors that are still free."""
        while known := [leaf for leaf in scale.powers if leaf in self._known]:
            power = scale.powers[known[0]]
            rest = {leaf: p for leaf, p in scale.powers.items() if leaf != known[0]}
            scale = dataclasses.replace(scale, powers=rest).plus(self._known[known[0]], power)
        return scale

    def be_one(self, scale: Scale) -> None:
        """Choose a factor such that a scale is 1; `Differs` if none is free."""
        scale = self.resolve(scale)
        if scale.powers:
            leaf, power = next(iter(scale.powers.items()))
            rest = {other: p for other, p in scale.powers.items() if other != leaf}
            rest = dataclasses.replace(scale, powers=rest)
            self._known[leaf] = Scale(because=scale.because).plus(rest, -1 / power)
        elif abs(scale.log) > _TOLERANCE:
            raise Differs(
                f"{scale.because}, and no leaf can make up for it: only linear operations may "
                "stand between them, and each use of the leaf needs the same factor",
                "make it independent of the width (a field that decompose leaves alone; a head's "
                "size is, where the number of heads is one of the fields), or apply it to the "
                "result of a linear layer",
            )

    def be_equal(self, scales: Sequence[Scale]) -> None:
        """Choose factors such that scales are equal."""
        for scale in scales[1:]:
            if scale is not scales[0]:
                self.be_one(scale.plus(scales[0], -1))

    def wish(self, scale: Scale) -> None:
        """Prefer a scale of 1 where the equations leave a choice: a number meets its own layer."""
        self._wishes.append(scale)

    def settle(self) -> None:
        """Grant the wishes that can be, in their order; factors that are still free become 1."""
        for scale in map(self.resolve, self._wishes):
            if scale.powers:
                self.be_one(scale)
        self._wishes.clear()

    def value(self, scale: Scale) -> float:
        """Return a scale as a number, after `settle`; those within rounding of 1 are 1."""
        log = self.resolve(scale).log
        if abs(log) <= _TOLERANCE:
            return 1.0
        return float(f"{math.exp(log):.14g}")  # the same on every machine
