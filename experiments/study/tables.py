"""The study's tables and curves, from what its trials have left."""

import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import dcjax
from experiments.markdown import put, table
from experiments.markdown import write as replace
from experiments.method import factory
from experiments.settings import schema
from experiments.study import arms, costs
from experiments.study.trials import Trial

Results = Mapping[str, Any]


class Finished(NamedTuple):
    """A trial with its results and its curve."""

    trial: Trial
    results: Results
    points: list[costs.Point]

    @property
    def accuracy(self) -> float:
        """At the end."""
        return self.points[-1].accuracy

    @property
    def cost(self) -> costs.Cost:
        """At the end."""
        return self.points[-1].cost


def write(document: Path, summary: Path, name: str, trials: Sequence[Trial]) -> list[Finished]:
    """Put a study's tables and curves into the document, and its second table into the summary,
    each between its markers.

    Returns:
      The trials that are finished, on which they rest; without any, nothing is written.

    Raises:
      ValueError: a document has no place for it.
    """
    finished = _finished(trials)
    if not finished:
        return []
    picture = document.with_name(f"{document.stem}-{name}.svg")
    conditions, accuracies = _conditions(finished), _accuracies(finished)
    speedups, curves = _speedups(finished), f"![accuracy against cost]({picture.name})"
    _draw(picture, finished)
    for place, parts in (
        (document, (conditions, accuracies, speedups, curves)),
        (summary, (conditions, speedups)),
    ):
        replace(place, put(place.read_text(), name, "\n\n".join(parts)))
    return finished


def _finished(trials: Sequence[Trial]) -> list[Finished]:
    """Those that are, at the pace of all of them."""
    done = [
        (trial, results, trial.arm.kind == "widened")
        for trial in trials
        if (results := trial.results) is not None
    ]
    if not done:
        return []
    first, results, _ = done[0]
    epoch_costs = costs.costs(
        [(results, widened) for _, results, widened in done],
        functools.partial(_operations, first.settings, results["model"]["classes"]),
        devices=_devices(first),
    )

    def finished(trial: Trial, results: Results, widened: bool) -> Finished:
        scratch = trial.arm.kind == "scratch"
        points = costs.curve(results, epoch_costs, scratch=scratch, widened=widened)
        return Finished(trial, results, points)

    return [finished(*each) for each in done]


def _devices(trial: Trial) -> int:
    """How many the account of wall-clock seconds has: one for each of the study's sub-networks."""
    return arms.with_flags(schema.Settings(), arms.STUDIES[trial.study].flags).subnets


def _operations(settings: schema.Settings, classes: int, kind: costs.Narrow | costs.Wide) -> float:
    """Floating-point operations of an epoch of one network, on images of 32×32×3.

    XLA's count for the forward pass, three times: the gradients by the activations and by the
    parameters take about as much each.
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


def _conditions(finished: Sequence[Finished]) -> str:
    """The command, and what the trials ran on."""
    name = finished[0].trial.study
    seeds = len({each.trial.seed for each in finished})
    versions = {
        ", ".join(f"{k} {v}" for k, v in each.results["versions"].items() if k != "dcjax")
        for each in finished
    }
    return (
        f"    python -m experiments.study --only {name} --seeds {seeds}\n\n"
        f"{arms.STUDIES[name].title}; {len(finished)} trials; {'; '.join(sorted(versions))}."
    )


def _by_arm(finished: Sequence[Finished]) -> dict[str, list[Finished]]:
    arms: dict[str, list[Finished]] = {}
    for each in finished:
        arms.setdefault(each.trial.arm.name, []).append(each)
    return arms


def _accuracies(finished: Sequence[Finished]) -> str:
    """What each arm came to, and at which cost."""
    body = []
    for name, group in _by_arm(finished).items():
        first = group[0]
        is_scratch = first.trial.arm.kind == "scratch"
        subnets = [100 * a for each in group for a in each.results["subnets_phase"]["accuracy"]]
        composed = [100 * each.points[0].accuracy for each in group]
        falls = [costs.fall(each.points) for each in group]
        body.append(
            [
                name,
                str(len(group)),
                "–" if is_scratch else spread(subnets),
                "–" if is_scratch else spread(composed),
                "–" if is_scratch else f"{100 * max(falls):.1f}",
                spread([100 * each.accuracy for each in group]),
                f"{first.cost.device_seconds:.0f}",
                f"{first.cost.wall_seconds:.0f}",
                f"{first.cost.operations / 1e12:.1f}",
            ]
        )
    head = ["arm", "seeds", "sub-networks, %", "composed, %", "largest fall, points", "final, %"]
    head += ["device-seconds", f"seconds on {_devices(finished[0].trial)} devices", "TFLOP"]
    return table(head, body)


def _speedups(finished: Sequence[Finished]) -> str:
    """How much sooner each arm gets where training from scratch ends, a table for each kind of
    samples: by what it sees the global network differs.
    """
    kinds = dict.fromkeys(each.trial.settings.network.samples for each in finished)
    return "\n\n".join(
        _against_scratch([each for each in finished if each.trial.settings.network.samples == kind])
        for kind in kinds
    )


def _against_scratch(finished: Sequence[Finished]) -> str:
    """How much sooner each arm reaches the accuracy of the best arm from scratch than that does."""
    arms = _by_arm(finished)
    scratch = {n: group for n, group in arms.items() if group[0].trial.arm.kind == "scratch"}
    if not scratch:
        return f"No arm from scratch is finished yet, to compare with: {', '.join(arms)}."
    most = max(len(group) for group in scratch.values())
    best, group = max(
        ((n, g) for n, g in scratch.items() if len(g) == most),
        key=lambda item: statistics.mean(each.accuracy for each in item[1]),
    )
    targets = {each.trial.seed: each.accuracy for each in group}
    # The best arm's own clock stops where it is there, too: that may be before its end.
    own = {
        each.trial.seed: costs.first_reaching(each.points, each.accuracy) or each.points[-1]
        for each in group
    }
    body = []
    for name, others in arms.items():
        pairs = [each for each in others if each.trial.seed in targets]
        reached = [
            (own[each.trial.seed], point)
            for each in pairs
            if (point := costs.first_reaching(each.points, targets[each.trial.seed]))
        ]
        if name == best or not pairs:
            continue
        gains = [100 * (each.accuracy - targets[each.trial.seed]) for each in pairs]
        ratios = ["–"] * len(costs.Cost._fields)
        if reached:
            ratios = [
                f"{statistics.mean(a / b for a, b in account):.2f}×"
                for account in zip(
                    *(zip(a.cost, b.cost, strict=True) for a, b in reached), strict=True
                )
            ]
        body.append([name, f"{len(reached)} of {len(pairs)}", *ratios, spread(gains, "+")])
    head = ["arm", "seeds that reach it", "device-seconds"]
    head += [f"seconds on {_devices(finished[0].trial)} devices", "operations"]
    head += ["final accuracy, points above"]
    return (
        f"Against `{best}`, seed by seed: the cost at which its curve first reaches its final "
        f"accuracy, over the cost at which the arm's does.\n\n{table(head, body)}"
    )


def spread(points: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation, the mean with its sign where that is `"+"`.

    >>> spread([50.0, 52.0]), spread([50.0]), spread([0.5, 1.5], "+")
    ('51.0 ± 1.4', '50.0', '+1.0 ± 0.7')
    """
    mean = f"{statistics.mean(points):{sign}.1f}"
    return mean if len(points) < 2 else f"{mean} ± {statistics.stdev(points):.1f}"


def _draw(picture: Path, finished: Sequence[Finished]) -> None:
    """Accuracy against device-seconds, the mean over the seeds of every arm.

    Arms with fewer seeds than others, which tune, are there in grey and without their names.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "dcjax"  # the same picture for the same figures
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5))
    arms = _by_arm(finished)
    most = max(len(group) for group in arms.values())
    # Twenty colours, less the two greys.
    colours = itertools.cycle(pyplot.get_cmap("tab20")([n for n in range(20) if n // 2 != 7]))
    for name, group in arms.items():
        costs = [point.cost.device_seconds for point in group[0].points]
        means = [
            100 * statistics.mean(point.accuracy for point in points)
            for points in zip(*(each.points for each in group), strict=True)
        ]
        style = "--" if group[0].trial.arm.kind == "scratch" else "-"
        if len(group) < most:
            axes.plot(costs, means, style, color="0.8", linewidth=0.8, zorder=1)
        else:
            axes.plot(costs, means, style, marker="o", ms=3, color=next(colours), label=name)
    axes.set_xlabel("device-seconds of training")
    axes.set_ylabel("test accuracy, %")
    # From scratch a curve begins at guessing; what is compared lies above.
    axes.set_ylim(bottom=100 * min(each.accuracy for each in finished) - 20)
    axes.set_title(
        f"{finished[0].trial.study}: means of {most} seeds; grey: fewer; dashed: scratch"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)
