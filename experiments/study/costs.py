"""What a trial cost, in accounts that are kept apart, and what it reached for that.

A cost is a triple: device-seconds on one device, wall-clock seconds on D devices (as many as the
study's networks have sub-networks), floating-point operations. Seconds are epochs times the pace,
the fewest seconds an epoch that any of the study's trials took for a phase of such a network: what
else a shared machine has to do can only add to them. Trials on another processor than most of those
that say theirs give no pace, nor do those that shared it with others (`--jobs`), but for what has
been run in no other way.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Results = Mapping[str, Any]


class Cost(NamedTuple):
    """What training up to some point has cost.

    On D devices that many sub-networks run at once, each on one, and the global network's batches
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


class Narrow(NamedTuple):
    """What the cost of the sub-networks' epoch depends on: K, how many are trained, their views."""

    subnets: int
    trained: int
    samples: str


class Wide(NamedTuple):
    """What the cost of the global network's epoch depends on: what it sees of an image, which is
    the sub-networks' views joined."""

    samples: str
    views: int


Costs = Mapping[Narrow | Wide, Cost]


class Point(NamedTuple):
    """A point of a trial's curve; `phase` is `"subnets"` for what the composed network starts from,
    else the results' name of the phase."""

    phase: str
    cost: Cost
    accuracy: float


def narrow(results: Results, widened: bool) -> Narrow:
    """The kind of a trial's sub-networks."""
    subnets = results["subnets"]
    return Narrow(subnets, 1 if widened else subnets, results["model"]["samples"])


def wide(results: Results) -> Wide:
    """The kind of a trial's global network; copies of the whole image are one view."""
    samples = results["model"]["samples"]
    return Wide(samples, 1 if samples == "replicate" else results["subnets"])


def costs(
    trials: Sequence[tuple[Results, bool]],
    operations: Callable[[Narrow | Wide], float],
    devices: int,
) -> Costs:
    """The cost of an epoch, by its kind.

    Args:
      trials: the results, and whether they are of a widened network; all of one architecture.
      operations: of an epoch of one network of a kind.
      devices: D.
    """
    places = [_place(results) for results, _ in trials]
    most = statistics.mode([place for place in places if place[1] is not None] or places)
    own = [each for each, here in zip(trials, places, strict=True) if here == most]
    alone = [each for each in own if each[0]["devices"].get("jobs", 1) == 1]
    # Each gives what the better ones have not run at all.
    paces = _paces(trials) | _paces(own) | _paces(alone)

    def cost(kind: Narrow | Wide) -> Cost:
        count = kind.trained if isinstance(kind, Narrow) else 1
        used = min(count, devices) if isinstance(kind, Narrow) else devices
        return Cost(paces[kind], paces[kind] / used, count * operations(kind))

    return {kind: cost(kind) for kind in paces}


def _place(results: Results) -> tuple[str | None, str | None]:
    """What a trial ran on: the kind of device, and the processor."""
    return results["devices"].get("kind"), results["devices"].get("processor")


def _paces(trials: Sequence[tuple[Results, bool]]) -> dict[Narrow | Wide, float]:
    """The seconds of an epoch at the best of all phases, by its kind."""
    seconds: dict[Narrow | Wide, list[float]] = {}
    for results, widened in trials:
        phase = results["subnets_phase"]
        if phase["epochs"]:
            each = phase["device_seconds"] / phase["epochs"]
            seconds.setdefault(narrow(results, widened), []).append(each)
        for name in ("finetune", "baseline"):
            last = results[name]["curve"][-1]
            if last["epoch"]:
                each = last["device_seconds"] / last["epoch"]
                seconds.setdefault(wide(results), []).append(each)
    return {kind: min(each) for kind, each in seconds.items()}


def curve(results: Results, costs: Costs, *, scratch: bool, widened: bool = False) -> list[Point]:
    """A trial's accuracy against its cost: the transfer's, or the baseline's from scratch.

    >>> costs = {Wide("replicate", 1): Cost(1.0, 0.25, 10.0)}
    >>> entries = [{"epoch": 0, "accuracy": 0.1}, {"epoch": 1, "accuracy": 0.4}]
    >>> results = {"model": {"samples": "replicate"}, "baseline": {"curve": entries}}
    >>> curve(results, costs, scratch=True)[1].cost
    Cost(device_seconds=1.0, wall_seconds=0.25, operations=10.0)
    """
    phase = "baseline" if scratch else "finetune"
    before = Cost(0.0, 0.0, 0.0)
    epochs = 0 if scratch else results["subnets_phase"]["epochs"]
    if epochs:
        before = costs[narrow(results, widened)].times(epochs)
    points = []
    for entry in results[phase]["curve"]:
        name = "subnets" if not entry["epoch"] and not scratch else phase
        cost = before
        if entry["epoch"]:
            cost += costs[wide(results)].times(entry["epoch"])
        points.append(Point(name, cost, entry["accuracy"]))
    return points


def first_reaching(points: Sequence[Point], accuracy: float) -> Point | None:
    """The first point of that accuracy; None if there is none."""
    return next((point for point in points if point.accuracy >= accuracy), None)


def fall(points: Sequence[Point]) -> float:
    """By how much fine-tuning fell below the composed start at worst; 0 if it never did."""
    start = points[0].accuracy
    return max(0.0, start - min(point.accuracy for point in points))
