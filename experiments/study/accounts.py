"""What a trial cost, in accounts that are kept apart, and what it reached for that.

A cost is a triple: device-seconds on one device, wall-clock seconds with K devices, floating-point
operations. Seconds are epochs times the pace, the median of all seconds that an epoch of that
network took in the study's trials, so that a busy moment of the machine favours none.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Results = Mapping[str, Any]


class Cost(NamedTuple):
    """What training up to some point has cost.

    With K devices each sub-network has one and they run at once, and the global network's batches
    are spread over all; communication, which only the latter needs, is not counted.
    """

    device_seconds: float
    wall_seconds: float
    operations: float

    def __add__(self, other: Any) -> "Cost":
        return Cost(*(mine + its for mine, its in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Cost":
        """So many times as much."""
        return Cost(*(factor * part for part in self))


class Paces(NamedTuple):
    """The cost of an epoch: of the sub-networks that are trained, by their number; of the global
    network."""

    members: Mapping[int, Cost]
    whole: Cost


class Point(NamedTuple):
    """A point of a trial's curve; `phase` is `"subnets"` for what the composed network starts from,
    else the results' name of the phase."""

    phase: str
    cost: Cost
    accuracy: float


def trained_members(results: Results, widened: bool) -> int:
    """The number of sub-networks that were trained."""
    return 1 if widened else results["subnets"]


def paces(
    trials: Sequence[tuple[Results, bool]], narrow_operations: float, whole_operations: float
) -> Paces:
    """The pace of a study's trials, given with whether they are widened.

    `narrow_operations` and `whole_operations` are those of one sub-network's and of the global
    network's epoch.
    """
    members: dict[int, list[float]] = {}
    whole: list[float] = []
    for results, widened in trials:
        phase = results["subnets_phase"]
        if phase["epochs"]:
            count = trained_members(results, widened)
            members.setdefault(count, []).append(phase["device_seconds"] / phase["epochs"])
        for name in ("finetune", "baseline"):
            seconds = [entry["device_seconds"] for entry in results[name]["curve"]]
            whole += [after - before for before, after in itertools.pairwise(seconds)]
    devices = trials[0][0]["subnets"]
    narrow = {n: statistics.median(seconds) for n, seconds in members.items()}
    seconds = statistics.median(whole)
    return Paces(
        {n: Cost(s, s / n, n * narrow_operations) for n, s in narrow.items()},
        Cost(seconds, seconds / devices, whole_operations),
    )


def curve(results: Results, paces: Paces, *, scratch: bool, widened: bool = False) -> list[Point]:
    """A trial's accuracy against its cost: the transfer's, or the baseline's from scratch.

    >>> cost = Cost(1.0, 0.25, 10.0)
    >>> entries = [{"epoch": 0, "accuracy": 0.1}, {"epoch": 1, "accuracy": 0.4}]
    >>> curve({"baseline": {"curve": entries}}, Paces({}, cost), scratch=True)[1].cost
    Cost(device_seconds=1.0, wall_seconds=0.25, operations=10.0)
    """
    phase = "baseline" if scratch else "finetune"
    before = Cost(0.0, 0.0, 0.0)
    epochs = 0 if scratch else results["subnets_phase"]["epochs"]
    if epochs:
        before = paces.members[trained_members(results, widened)].times(epochs)
    points = []
    for entry in results[phase]["curve"]:
        name = "subnets" if not entry["epoch"] and not scratch else phase
        cost = before + paces.whole.times(entry["epoch"])
        points.append(Point(name, cost, entry["accuracy"]))
    return points


def first_reaching(points: Sequence[Point], accuracy: float) -> Point | None:
    """The first point of that accuracy; None if there is none."""
    return next((point for point in points if point.accuracy >= accuracy), None)


def fall(points: Sequence[Point]) -> float:
    """By how much fine-tuning fell below the composed start at worst; 0 if it never did."""
    start = points[0].accuracy
    return max(0.0, start - min(point.accuracy for point in points))
