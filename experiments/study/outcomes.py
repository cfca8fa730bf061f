"""Outcomes: finished trials with their curves, their best arms, and the gain of a study."""

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

import dcjax
from experiments.method import factory
from experiments.settings.flags import Settings
from experiments.study import arms, costs
from experiments.study.trials import Trial, read


class Outcome(NamedTuple):
    """A finished trial with its results and its curve."""

    trial: Trial
    results: Mapping[str, Any]
    points: list[costs.Point]

    @property
    def accuracy(self) -> float:
        """The final accuracy."""
        return self.points[-1].accuracy

    @property
    def cost(self) -> costs.Cost:
        """The cost of the whole trial."""
        return self.points[-1].cost


Arms = dict[str, list[Outcome]]
"""Outcomes by the name of their arm."""


class Gain(NamedTuple):
    """The gain of the best transfer over the best training from scratch, in one study.

    Attributes:
      width: of the global network.
      epochs: from scratch.
      scratch: the outcomes of the best arm from scratch.
      transfer: the outcomes of the best transfer.
      points: the gain in final accuracy, in percentage points, of each seed that both have.
    """

    width: int
    epochs: int
    scratch: list[Outcome]
    transfer: list[Outcome]
    points: list[float]


def outcomes(trials: Sequence[Trial]) -> list[Outcome]:
    """Return the outcomes of the finished trials of one study.

    Records of other trials of the study, such as more seeds, count only for the pace.
    """
    done = [(trial, results) for trial in trials if (results := trial.results) is not None]
    if not done:
        return []
    first, results = done[0]
    names = {trial.folder.name for trial in trials}
    others = [kept["results"] for name, kept in read(first.records).items() if name not in names]
    epoch_costs = costs.costs(
        [*(results for _, results in done), *others],
        functools.partial(operations, first.settings, results["model"]["classes"]),
        devices(first.study),
    )
    return [
        Outcome(trial, results, costs.curve(results, epoch_costs, scratch=trial.arm.is_scratch))
        for trial, results in done
    ]


def devices(study: arms.Study) -> int:
    """Return the number of devices in the account of wall-clock seconds: one a sub-network."""
    return arms.with_flags(study.flags).subnets


def operations(settings: Settings, classes: int, kind: costs.Narrow | costs.Wide) -> float:
    """Return the floating-point operations of an epoch of one network, on images of 32×32×3.

    XLA counts the forward pass; the gradients by the activations and by the parameters take about
    as much each.
    """
    network = factory.network(settings.network, classes)
    x: Any = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    if isinstance(kind, costs.Narrow):
        network = dcjax.decompose(network, kind.subnets)
        samples = dcjax.samples.make(kind.samples, kind.subnets)
        x = jax.eval_shape(lambda x: samples.split(x)[0], x)
    else:
        x = jax.eval_shape(dcjax.samples.make(kind.samples, kind.views).join, x)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    counted: Any = jax.jit(network.apply).lower(variables, x).cost_analysis()
    return 3.0 * counted["flops"] * (settings.data.train_size or 0)


def by_arm(found: Sequence[Outcome], *, scratch: bool | None = None) -> Arms:
    """Group outcomes by arm: of all arms, of those from scratch, or of the others."""
    groups: Arms = {}
    for each in found:
        if scratch is None or each.trial.arm.is_scratch == scratch:
            groups.setdefault(each.trial.arm.name, []).append(each)
    return groups


def best(groups: Arms) -> list[Outcome]:
    """Return the outcomes of the most accurate arm among those with the most seeds."""
    most = max(map(len, groups.values()))
    return max(
        (group for group in groups.values() if len(group) == most),
        key=lambda group: statistics.mean(each.accuracy for each in group),
    )


def paired(baseline: Sequence[Outcome], others: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """Return the pairs of a baseline's and another outcome that have the same seed."""
    by_seed = {each.trial.seed: each for each in baseline}
    return [(by_seed[e.trial.seed], e) for e in others if e.trial.seed in by_seed]


def gain(found: Sequence[Outcome]) -> Gain | None:
    """Return the gain of one study; None unless both sides have outcomes of the same seed."""
    sides = by_arm(found, scratch=True), by_arm(found, scratch=False)
    if not all(sides):
        return None
    scratch, transfer = map(best, sides)
    points = [100 * (ours.accuracy - its.accuracy) for its, ours in paired(scratch, transfer)]
    settings = scratch[0].trial.settings
    width, epochs = settings.network.width, settings.training.baseline_epochs
    return Gain(width, epochs, scratch, transfer, points) if points else None
