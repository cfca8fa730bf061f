"""The cost of a trial in three accounts, and the accuracy that it reached for that.

The accounts: device-seconds on one device, wall-clock seconds on D devices (as many as the study's
networks have sub-networks), floating-point operations. Seconds are epochs times the pace, the
fewest seconds an epoch that any of the study's trials took in a phase of such a network: other work
on a shared machine can only slow a trial down. Paces come from trials that ran alone on the most
common processor; other trials are used only where no such trial exists.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Results = Mapping[str, Any]


class Cost(NamedTuple):
    """The cost of training up to some point.

    On D devices that many sub-networks run at once, each on one device, and the global network's
    batches are spread over all. Communication, which only the latter needs, is not counted.
    """

    device_seconds: float
    wall_seconds: float
    operations: float

    def plus(self, other: "Cost", times: float) -> "Cost":
        """Return this cost plus a multiple of another."""
        return Cost(*(mine + times * its for mine, its in zip(self, other, strict=True)))


class Narrow(NamedTuple):
    """The properties that set the cost of the sub-networks' epoch: K, and what they see."""

    subnets: int
    samples: str


class Wide(NamedTuple):
    """The properties that set the cost of the global network's epoch: it sees the joined views."""

    samples: str
    views: int


Costs = Mapping[Narrow | Wide, Cost]


class Point(NamedTuple):
    """A point of a trial's curve."""

    cost: Cost
    accuracy: float


def narrow(results: Results) -> Narrow:
    """Return the kind of a trial's sub-networks."""
    return Narrow(results["subnets"], results["model"]["samples"])


def wide(results: Results) -> Wide:
    """Return the kind of a trial's global network; copies of the whole image are one view."""
    samples = results["model"]["samples"]
    return Wide(samples, 1 if samples == "replicate" else results["subnets"])


def costs(
    trials: Sequence[Results], operations: Callable[[Narrow | Wide], float], devices: int
) -> Costs:
    """Return the cost of an epoch of each kind of network.

    Args:
      trials: the results of trials, all of one architecture.
      operations: gives the operations of an epoch of one network of a kind.
      devices: D.
    """
    places = [(each["devices"]["kind"], each["devices"]["processor"]) for each in trials]
    # Some records do not name the processor.
    common = statistics.mode([place for place in places if place[1] is not None] or places)
    there = [each for each, place in zip(trials, places, strict=True) if place == common]
    alone = [each for each in there if each["devices"]["jobs"] == 1]
    paces = _paces(trials) | _paces(there) | _paces(alone)  # the later ones replace the earlier

    def cost(kind: Narrow | Wide) -> Cost:
        count = kind.subnets if isinstance(kind, Narrow) else 1
        used = min(count, devices) if isinstance(kind, Narrow) else devices
        return Cost(paces[kind], paces[kind] / used, count * operations(kind))

    return {kind: cost(kind) for kind in paces}


def _paces(trials: Sequence[Results]) -> dict[Narrow | Wide, float]:
    """Return the fewest seconds of an epoch of each kind of network."""
    seconds: dict[Narrow | Wide, list[float]] = {}
    for results in trials:
        phase = results["subnets_phase"]
        if phase["epochs"]:
            pace = phase["device_seconds"] / phase["epochs"]
            seconds.setdefault(narrow(results), []).append(pace)
        for name in ("finetune", "baseline"):
            last = results[name]["curve"][-1]
            if last["epoch"]:
                pace = last["device_seconds"] / last["epoch"]
                seconds.setdefault(wide(results), []).append(pace)
    return {kind: min(each) for kind, each in seconds.items()}


def curve(results: Results, costs: Costs, *, scratch: bool) -> list[Point]:
    """Return a trial's accuracy against its cost: the transfer's, or the baseline's from scratch.

    The transfer's curve begins with the composed network.

    >>> costs = {Wide("replicate", 1): Cost(1.0, 0.25, 10.0)}
    >>> entries = [{"epoch": 0, "accuracy": 0.1}, {"epoch": 1, "accuracy": 0.4}]
    >>> results = {"model": {"samples": "replicate"}, "baseline": {"curve": entries}}
    >>> curve(results, costs, scratch=True)[1].cost
    Cost(device_seconds=1.0, wall_seconds=0.25, operations=10.0)
    """
    before = Cost(0.0, 0.0, 0.0)
    if not scratch:
        before = before.plus(costs[narrow(results)], results["subnets_phase"]["epochs"])
    points = []
    for entry in results["baseline" if scratch else "finetune"]["curve"]:
        # A study that only composes has no cost of the global network.
        cost = before.plus(costs[wide(results)], entry["epoch"]) if entry["epoch"] else before
        points.append(Point(cost, entry["accuracy"]))
    return points


def first_reaching(points: Sequence[Point], accuracy: float) -> Point | None:
    """Return the first point with at least that accuracy, or None."""
    return next((point for point in points if point.accuracy >= accuracy), None)


def fall(points: Sequence[Point]) -> float:
    """Return how far fine-tuning fell below the composed start at worst; 0 if it never did."""
    return points[0].accuracy - min(point.accuracy for point in points)
