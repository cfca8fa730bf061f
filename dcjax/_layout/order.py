"""The order of the units along one axis: where each sub-network's entries stand in the global axis.

An `Order` is kept as *runs*, a few integers, so that composition is reshapes and copies, equality
is cheap, and the whole is hashable static data.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Run(NamedTuple):
    """Consecutive entries of an axis: `units` for every sub-network, or shared by all of them.

    A split run takes K·units global entries, sub-network 0's block first; a shared run takes
    `units`, which every sub-network has in common.
    """

    units: int
    shared: bool = False

    def width(self, subnets: int) -> int:
        """Return how many entries of the global axis the run takes."""
        return self.units if self.shared else subnets * self.units


@dataclasses.dataclass(frozen=True)
class Order:
    """The runs of an axis, in order, the whole sequence `repeat` times over.

    Everyday cases, for K sub-networks of c channels each:

    * `Order((Run(c),))`: the channels of a convolution, [0…c) of sub-network 0, then of 1, …;
    * `Order((Run(c),), repeat=h*w)`: the same after a flatten of (h, w, c): blocks interleave;
    * `Order((Run(a), Run(b)))`: a concatenation of two feature maps, as in DenseNet;
    * `Order((Run(n, shared=True),))`: an axis that does not grow: classes, an RGB input.

    Orders are kept in a normal form, so two equal placements compare equal:

    >>> Order((Run(2), Run(2))) == Order((Run(2),), repeat=2)
    True
    >>> print(Order((Run(3, shared=True), Run(8))))
    3 shared + K×8
    """

    runs: tuple[Run, ...]
    repeat: int = 1

    def __post_init__(self) -> None:
        runs, repeat = _merged(run for run in self.runs if run.units), self.repeat
        if runs and runs[0].shared and runs[-1].shared:  # the seams between repeats merge too
            runs, repeat = _merged(runs * repeat), 1
        # The shortest sequence of which the runs are a whole number of repeats.
        lengths = (d for d in range(1, len(runs) + 1) if len(runs) % d == 0)
        period = next((d for d in lengths if runs == runs[:d] * (len(runs) // d)), 1)
        object.__setattr__(self, "runs", runs[:period])
        object.__setattr__(self, "repeat", repeat * (len(runs) // period))

    @property
    def is_shared(self) -> bool:
        """True if the axis does not grow."""
        return all(run.shared for run in self.runs)

    @property
    def is_mixed(self) -> bool:
        """True if the axis has shared entries beside split ones."""
        return not self.is_shared and any(run.shared for run in self.runs)

    @property
    def narrow(self) -> int:
        """The number of entries of a sub-network's axis."""
        return self.repeat * sum(run.units for run in self.runs)

    def width(self, subnets: int) -> int:
        """Return the number of entries of the global axis."""
        return self.repeat * sum(run.width(subnets) for run in self.runs)

    def spans(self, subnets: int) -> Iterator[tuple[Run, int, int]]:
        """Iterate over the runs of one period, with their starts in the narrow and global axis."""
        narrow = width = 0
        for run in self.runs:
            yield run, narrow, width
            narrow, width = narrow + run.units, width + run.width(subnets)

    def indices(self, subnets: int) -> Int[np.ndarray, "K n"]:
        """Return the global index of every sub-network's every entry.

        This is the definition of an order. Composition copies runs and does not use it.

        >>> Order((Run(1),), repeat=2).indices(2)
        array([[0, 2],
               [1, 3]])
        """
        period = np.zeros((subnets, sum(run.units for run in self.runs)), int)
        for run, narrow, width in self.spans(subnets):
            step = 0 if run.shared else run.units
            places = width + np.arange(run.units) + step * np.arange(subnets)[:, None]
            period[:, narrow : narrow + run.units] = places
        starts = np.arange(self.repeat) * sum(run.width(subnets) for run in self.runs)
        return (starts[:, None] + period[:, None, :]).reshape(subnets, -1)

    def entries(self, subnets: int) -> Int[np.ndarray, " width"]:
        """Return the index in a sub-network's axis of the entry at every global index.

        >>> Order((Run(2),)).entries(2)
        array([0, 1, 0, 1])
        """
        entries = np.zeros(self.width(subnets), int)
        entries[self.indices(subnets)] = np.arange(self.narrow)
        return entries

    def __str__(self) -> str:
        if self.is_shared:
            return str(self.narrow)
        runs = [f"{run.units} shared" if run.shared else f"K×{run.units}" for run in self.runs]
        inside = " + ".join(runs)
        if self.repeat == 1:
            return inside
        return f"{self.repeat}×({inside})" if len(runs) > 1 else f"{self.repeat}×{inside}"


def _merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Merge neighbouring shared runs; two neighbouring split runs differ from one of both."""
    merged: list[Run] = []
    for run in runs:
        if merged and run.shared and merged[-1].shared:
            run = Run(merged.pop().units + run.units, shared=True)
        merged.append(run)
    return tuple(merged)
