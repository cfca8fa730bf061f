"""Outcomes: finished trials, with their accuracy against their cost, and the best of them.

Costs have three accounts: seconds on one device; seconds on D devices, as many as the study's
networks have sub-networks; floating-point operations. On D devices the sub-networks run at once,
each on one, and the global network's batches are spread over all; communication is not counted.

Seconds are epochs times the pace, the fewest seconds an epoch that any of the study's trials took
for such networks: other work on a shared machine can only slow a trial down. Paces come from trials
on the most common processor; other trials are used only where no such trial exists.
"""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

import dcjax
from experiments.method import factory
from experiments.results.schema import Results
from experiments.settings.flags import Settings
from experiments.study import arms
from experiments.study.trials import Trial, read

Cost = Float[np.ndarray, "3"]
"""Device-seconds, seconds on D devices, operations."""


class Kind(NamedTuple):
    """The properties that set the cost of an epoch.

    Attributes:
      narrow: whether the sub-networks are trained, or the global network.
      views: the number of sub-networks, or of the views that the global network sees joined.
      samples: the name of the views.
    """

    narrow: bool
    views: int
    samples: str


class Outcome(NamedTuple):
    """A finished trial with the points of its curve; the transfer's begins where it is composed."""

    trial: Trial
    results: Results
    accuracies: Float[np.ndarray, " n"]
    costs: Float[np.ndarray, "n 3"]

    @property
    def accuracy(self) -> float:
        """The final accuracy."""
        return float(self.accuracies[-1])

    def cost_to(self, accuracy: float) -> Cost | None:
        """Return the cost at which the curve first has that accuracy, or None."""
        reached = self.accuracies >= accuracy
        return self.costs[reached.argmax()] if reached.any() else None


def outcomes(trials: Sequence[Trial]) -> list[Outcome]:
    """Return the outcomes of the finished trials of one study.

    Records of other trials of the study, such as more seeds, count only for the pace.
    """
    done = [(trial, results) for trial in trials if (results := trial.results) is not None]
    if not done:
        return []
    first, results = done[0]
    count = functools.partial(operations, first.settings, results["model"]["classes"])
    recorded = [kept["results"] for kept in read(first.records).values()]
    costs = epoch_costs(recorded, count, devices(first.study))
    return [
        Outcome(trial, results, *curve(results, costs, scratch=trial.arm.is_scratch))
        for trial, results in done
    ]


def devices(study: arms.Study) -> int:
    """Return D: one device for each sub-network."""
    return arms.with_flags(study.flags).subnets


def epoch_costs(
    recorded: Sequence[Results], operations: Callable[[Kind], float], devices: int
) -> dict[Kind, Cost]:
    """Return the cost of an epoch of each kind.

    Args:
      recorded: the results of trials, all of one architecture.
      operations: gives the operations of an epoch of one network of a kind.
      devices: D.
    """
    places = [(each["devices"]["kind"], each["devices"]["processor"]) for each in recorded]
    # Some records do not name the processor.
    common = statistics.mode([place for place in places if place[1] is not None] or places)
    there = [each for each, place in zip(recorded, places, strict=True) if place == common]
    costs = {}
    for kind, pace in (_paces(recorded) | _paces(there)).items():
        networks = kind.views if kind.narrow else 1
        busy = min(networks, devices) if kind.narrow else devices
        costs[kind] = np.array([pace, pace / busy, networks * operations(kind)])
    return costs


def _paces(recorded: Sequence[Results]) -> dict[Kind, float]:
    """Return the fewest seconds of an epoch of each kind."""
    paces: dict[Kind, float] = {}
    for results in recorded:
        for name in ("subnets_phase", "finetune", "baseline"):
            phase, kind = results[name], _kind(results, narrow=name == "subnets_phase")
            if phase["epochs"]:
                pace = phase["device_seconds"] / phase["epochs"]
                paces[kind] = min(pace, paces.get(kind, pace))
    return paces


def _kind(results: Results, *, narrow: bool) -> Kind:
    samples = results["model"]["samples"]
    # Copies of the whole image, joined, are one image, whatever their number.
    one = samples == "replicate" and not narrow
    return Kind(narrow, 1 if one else results["subnets"], samples)


def operations(settings: Settings, classes: int, kind: Kind) -> float:
    """Return the floating-point operations of an epoch of one network, on images of 32×32×3.

    XLA counts the forward pass; the gradients by the activations and by the parameters take about
    as much each.
    """
    network = factory.network(settings.network, classes)
    samples = dcjax.samples.make(kind.samples, kind.views)
    x: Any = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    if kind.narrow:
        network = dcjax.decompose(network, kind.views)
        x = jax.eval_shape(lambda x: samples.split(x)[0], x)
    else:
        x = jax.eval_shape(samples.join, x)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    counted: Any = jax.jit(network.apply).lower(variables, x).cost_analysis()
    return 3.0 * counted["flops"] * (settings.data.train_size or 0)


def curve(
    results: Results, costs: Mapping[Kind, Cost], *, scratch: bool
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 3"]]:
    """Return a trial's accuracies and their costs: the transfer's, or the baseline's.

    >>> results = {"subnets": 4, "model": {"samples": "replicate"}}
    >>> entries = [{"epoch": 0, "accuracy": 0.1}, {"epoch": 1, "accuracy": 0.4}]
    >>> costs = {Kind(False, 1, "replicate"): np.array([1.0, 0.25, 10.0])}
    >>> accuracies, spent = curve(results | {"baseline": {"curve": entries}}, costs, scratch=True)
    >>> spent[1]
    array([ 1.  ,  0.25, 10.  ])
    """
    entries = results["baseline" if scratch else "finetune"]["curve"]
    epochs = np.array([entry["epoch"] for entry in entries])
    # A study that only composes has no cost of the global network.
    spent = np.outer(epochs, costs.get(_kind(results, narrow=False), np.zeros(3)))
    if not scratch:
        spent += results["subnets_phase"]["epochs"] * costs[_kind(results, narrow=True)]
    return np.array([entry["accuracy"] for entry in entries]), spent


def by_arm(found: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Group outcomes by the names of their arms."""
    groups: dict[str, list[Outcome]] = {}
    for each in found:
        groups.setdefault(each.trial.arm.name, []).append(each)
    return groups


def best(found: Sequence[Outcome], *, scratch: bool) -> list[Outcome]:
    """Return the outcomes of the most accurate arm among those with the most seeds.

    Args:
      found: the outcomes.
      scratch: whether to choose among the arms from scratch, or among the others.

    Returns:
      The outcomes, or [] if such an arm has none.
    """
    groups = by_arm([each for each in found if each.trial.arm.is_scratch == scratch]).values()
    most = max(map(len, groups), default=0)
    return max(
        (group for group in groups if len(group) == most),
        key=lambda group: statistics.mean(each.accuracy for each in group),
        default=[],
    )


def paired(baseline: Sequence[Outcome], others: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """Return the pairs of a baseline's and another outcome that have the same seed."""
    by_seed = {each.trial.seed: each for each in baseline}
    return [(by_seed[e.trial.seed], e) for e in others if e.trial.seed in by_seed]


def sooner(pairs: Sequence[tuple[Outcome, Outcome]]) -> list[Cost]:
    """Return how much sooner each seed has the final accuracy from scratch, if it reaches it."""
    # The baseline's clock, too, stops where it first has that accuracy, maybe before its end.
    return [
        its.cost_to(its.accuracy) / cost
        for its, ours in pairs
        if (cost := ours.cost_to(its.accuracy)) is not None
    ]


def gains(pairs: Sequence[tuple[Outcome, Outcome]]) -> list[float]:
    """Return how far the final accuracies are above those from scratch."""
    return [ours.accuracy - its.accuracy for its, ours in pairs]


class Length(NamedTuple):
    """The best of each side of one study of the length, and what they differ by, seed by seed."""

    scratch: list[Outcome]
    transfer: list[Outcome]
    gains: list[float]
    ratios: list[float]
    """Operations to the final accuracy from scratch: the baseline's over the transfer's."""

    @property
    def width(self) -> int:
        """The global network's width."""
        return self.scratch[0].trial.settings.network.width

    @property
    def epochs(self) -> int:
        """The epochs from scratch."""
        return self.scratch[0].trial.settings.training.baseline_epochs


def lengths(studies: Sequence[Sequence[Outcome]]) -> list[Length]:
    """Compare the best arms of the studies that have trials on both sides."""
    compared = []
    for found in studies:
        scratch, transfer = best(found, scratch=True), best(found, scratch=False)
        if pairs := paired(scratch, transfer):
            ratios = [float(ratio[2]) for ratio in sooner(pairs)]
            compared.append(Length(scratch, transfer, gains(pairs), ratios))
    return compared
