"""Seconds and bytes of whole trainings, from measured steps: compute + bytes / bandwidth."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.scaling.worker import APART, AVERAGE, GATHER, SUBNET, TOGETHER

STEPS = 78
"""Of an epoch: 10,000 images in batches of 128, 32 on each of four devices."""
DEVICES = 4


class Cost(NamedTuple):
    """The seconds that a device computes, and the bytes that it sends."""

    seconds: float
    bytes: float

    def times(self, count: float) -> "Cost":
        """Return the cost of so many."""
        return Cost(count * self.seconds, count * self.bytes)

    def plus(self, other: "Cost") -> "Cost":
        """Return the cost of both, one after another."""
        return Cost(self.seconds + other.seconds, self.bytes + other.bytes)

    def over(self, rate: float) -> float:
        """Return the seconds over a link of so many Mbit/s; 0 for one without limit.

        >>> Cost(1.0, 1e6).over(8), Cost(1.0, 1e6).over(0)
        (2.0, 1.0)
        """
        return self.seconds + (8e-6 * self.bytes / rate if rate else 0.0)


def costs(measured: Sequence[Mapping[str, Any]], width: int) -> dict[str, Cost]:
    """Return the cost of each kind of step in two processes, by its name.

    Seconds are those of the processor, without a limit on the link: other work on the machine adds
    to the time that passes, not to them.
    """
    (free,) = (each for each in measured if of(each, width) and not each["rate"])
    return {
        kind: Cost(statistics.median(found["cpu_seconds"]), found["bytes"])
        for kind, found in free["kinds"].items()
    }


def of(each: Mapping[str, Any], width: int, processes: int = 2) -> bool:
    """Return whether the record is of this width and number of processes."""
    return each["width"] == width and each["processes"] == processes


def ring(devices: float) -> float:
    """Return how many times as much a device sends in a ring of so many than in one of two.

    >>> ring(2), ring(4)
    (1.0, 1.5)
    """
    return 2 * (devices - 1) / devices


def transfer(
    step: Mapping[str, Cost], epochs: tuple[float, float], every: int | None = None
) -> Cost:
    """Return the cost of sub-networks, gathering and fine-tuning; with `every`, of copies."""
    first, last = epochs
    gathered = step[GATHER]._replace(bytes=ring(DEVICES) * step[GATHER].bytes)
    subnets = step[SUBNET].times(first * STEPS)
    return subnets.plus(gathered).plus(global_network(step, last, every))


def global_network(step: Mapping[str, Cost], epochs: float, every: int | None = None) -> Cost:
    """Return the cost of training the global network; with `every`, of copies that are averaged."""
    steps = epochs * STEPS
    if every is None:
        each = step[TOGETHER]
        return each._replace(bytes=ring(DEVICES) * each.bytes).times(steps)
    average = step[AVERAGE]._replace(bytes=ring(DEVICES) * step[AVERAGE].bytes)
    return step[APART].times(steps).plus(average.times(math.ceil(steps / every)))


def epochs_to(curve: Sequence[Mapping[str, Any]], accuracy: float) -> float:
    """Return the first epoch of a curve with that accuracy; infinity if there is none.

    >>> epochs_to([{"epoch": 0, "accuracy": 0.5}, {"epoch": 1, "accuracy": 0.7}], 0.6)
    1
    """
    reached = (entry["epoch"] for entry in curve if entry["accuracy"] >= accuracy)
    return next(reached, math.inf)
