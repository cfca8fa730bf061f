"""The study's tables, and the document that holds them between its markers."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.markdown import put, table, write
from experiments.study import costs, figure
from experiments.study.outcomes import Gain, Outcome, best, by_arm, devices, paired
from experiments.study.outcomes import gain as gain_of


def report(document: Path, found: Sequence[Outcome]) -> None:
    """Write a study's tables and its picture.

    Raises:
      ValueError: the document has no place for them.
    """
    name = found[0].trial.study.name
    picture = document.with_name(f"{document.stem}-{name}.svg")
    parts = [_conditions(found), _accuracies(found), _speedups(found)]
    parts += [f"![accuracy against cost]({picture.name})"]
    text = put(document.read_text(), name, "\n\n".join(parts))
    figure.draw_curves(picture, name, by_arm(found))
    write(document, text)


def report_lengths(document: Path, studies: Sequence[Sequence[Outcome]]) -> None:
    """Write the gain against the length of training, of the length studies that have both sides.

    Raises:
      ValueError: the document has no place for it.
    """
    gains = [gain for found in studies if (gain := gain_of(found))]
    if not gains:
        return
    gains.sort(key=lambda gain: (gain.width, gain.epochs))
    picture = document.with_name(f"{document.stem}-length.svg")
    parts = ["    python -m experiments.study --only length-wWIDTH-eEPOCHS", _versions(studies)]
    parts += [_lengths(gains), f"![gain against the length of training]({picture.name})"]
    text = put(document.read_text(), "length", "\n\n".join(parts))
    figure.draw_gains(picture, gains)
    write(document, text)


def _lengths(gains: Sequence[Gain]) -> str:
    body = []
    for each in gains:
        operations = each.transfer[0].cost.operations / each.scratch[0].cost.operations
        body.append([str(each.width), str(each.epochs)])
        for side in (each.scratch, each.transfer):
            accuracies = [100 * outcome.accuracy for outcome in side]
            body[-1] += [side[0].trial.arm.name, spread(accuracies)]
        body[-1] += [f"{operations:.2f}", spread(each.points, "+"), str(len(each.points))]
    head = ["width", "epochs from scratch", "best from scratch", "%", "best transfer", "%"]
    head += ["operations, of scratch", "gain, points", "seeds"]
    return table(head, body)


def _versions(studies: Sequence[Sequence[Outcome]]) -> str:
    said = {
        ", ".join(f"{k} {v}" for k, v in each.results["versions"].items() if k != "dcjax")
        for found in studies
        for each in found
    }
    return f"{'; '.join(sorted(said))}."


def _conditions(found: Sequence[Outcome]) -> str:
    """Return the command, the title, and the versions of a study's trials."""
    study = found[0].trial.study
    seeds = len({each.trial.seed for each in found})
    return (
        f"    python -m experiments.study --only {study.name} --seeds {seeds}\n\n"
        f"{study.title}; {len(found)} trials; {_versions([found])}"
    )


def _accuracies(found: Sequence[Outcome]) -> str:
    """Return the table of every arm's accuracies and costs."""
    body = []
    for name, group in by_arm(found).items():
        cost = group[0].cost
        before = ["–", "–", "–"]
        if not group[0].trial.arm.is_scratch:
            subnets = [100 * a for each in group for a in each.results["subnets_phase"]["accuracy"]]
            composed = [100 * each.points[0].accuracy for each in group]
            fall = 100 * max(costs.fall(each.points) for each in group)
            before = [spread(subnets), spread(composed), f"{fall:.1f}"]
        final = spread([100 * each.accuracy for each in group])
        seconds = [f"{cost.device_seconds:.0f}", f"{cost.wall_seconds:.0f}"]
        teraflops = f"{cost.operations / 1e12:.1f}"
        body.append([name, str(len(group)), *before, final, *seconds, teraflops])
    head = ["arm", "seeds", "sub-networks, %", "composed, %", "largest fall, points", "final, %"]
    count = devices(found[0].trial.study)
    return table([*head, "device-seconds", f"seconds on {count} devices", "TFLOP"], body)


def _speedups(found: Sequence[Outcome]) -> str:
    """Return a speed-up table for each way to decompose samples.

    Each trains a different global network, so that arms are compared within it only.
    """
    kinds = dict.fromkeys(each.trial.settings.network.samples for each in found)
    return "\n\n".join(
        _against_scratch([each for each in found if each.trial.settings.network.samples == kind])
        for kind in kinds
    )


def _against_scratch(found: Sequence[Outcome]) -> str:
    """Return how much sooner each arm reaches the final accuracy of the best arm from scratch."""
    arms, scratch = by_arm(found), by_arm(found, scratch=True)
    if not scratch:
        return f"No arm from scratch has finished, to compare with: {', '.join(arms)}."
    baseline = best(scratch)
    name = baseline[0].trial.arm.name
    body = []
    for arm, group in arms.items():
        pairs = paired(baseline, group)
        if arm == name or not pairs:
            continue
        # The baseline's clock, too, stops where it first has that accuracy, maybe before its end.
        reached = [
            (first.cost, point.cost)
            for its, ours in pairs
            if (first := costs.first_reaching(its.points, its.accuracy))
            and (point := costs.first_reaching(ours.points, its.accuracy))
        ]
        ratios = ["–"] * len(costs.Cost._fields)
        if reached:
            ratios = [
                f"{statistics.mean(theirs[n] / ours[n] for theirs, ours in reached):.2f}×"
                for n in range(len(costs.Cost._fields))
            ]
        gains = [100 * (ours.accuracy - its.accuracy) for its, ours in pairs]
        body.append([arm, f"{len(reached)} of {len(pairs)}", *ratios, spread(gains, "+")])
    head = ["arm", "seeds that reach it", "device-seconds"]
    head += [f"seconds on {devices(found[0].trial.study)} devices", "operations"]
    head += ["final accuracy, points above"]
    return (
        f"Against `{name}`, seed by seed: the cost at which its curve first reaches its final "
        f"accuracy, over the cost at which the arm's does.\n\n{table(head, body)}"
    )


def spread(points: Sequence[float], sign: str = "") -> str:
    """Return mean ± standard deviation; `sign="+"` shows the sign of a positive mean.

    >>> spread([50.0, 52.0]), spread([50.0]), spread([0.5, 1.5], "+")
    ('51.0 ± 1.4', '50.0', '+1.0 ± 0.7')
    """
    mean = f"{statistics.mean(points):{sign}.1f}"
    return mean if len(points) < 2 else f"{mean} ± {statistics.stdev(points):.1f}"
