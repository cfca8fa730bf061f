"""The study's tables, and the document that holds them between its markers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.markdown import put, table, write
from experiments.study import figure
from experiments.study.outcomes import (
    Length,
    Outcome,
    best,
    by_arm,
    devices,
    gains,
    lengths,
    paired,
    sooner,
)
from experiments.study.studies import length


def report(document: Path, found: Mapping[str, list[Outcome]]) -> None:
    """Write the tables and the pictures of all studies that have a place in the document."""
    text = document.read_text()
    for name, its in found.items():
        if f"<!-- {name} -->" in text:
            picture = document.with_name(f"{document.stem}-{name}.svg")
            figure.draw_curves(picture, name, its)
            parts = [_conditions(its), _accuracies(its), _speedups(its)]
            parts += [f"![accuracy against cost]({picture.name})"]
            text = put(text, name, "\n\n".join(parts))
    # The studies of the length share one table.
    compared = lengths([found[study.name] for study in length.STUDIES if study.name in found])
    if "<!-- length -->" in text and compared:
        picture = document.with_name(f"{document.stem}-length.svg")
        figure.draw_lengths(picture, compared)
        shown = f"![gain and time to the baseline's accuracy]({picture.name})"
        text = put(text, "length", f"{shown}\n\n{_length_table(compared)}")
    write(document, text)


def _conditions(found: Sequence[Outcome]) -> str:
    """Return the command, the title, and the versions of a study's trials."""
    study = found[0].trial.study
    seeds = len({each.trial.seed for each in found})
    return (
        f"    python -m experiments.study --only {study.name} --seeds {seeds}\n\n"
        f"{study.title}; {len(found)} trials; {_versions(found)}"
    )


def _versions(found: Sequence[Outcome]) -> str:
    said = {
        ", ".join(f"{k} {v}" for k, v in each.results["versions"].items() if k != "dcjax")
        for each in found
    }
    return f"{'; '.join(sorted(said))}."


def _accuracies(found: Sequence[Outcome]) -> str:
    """Return the table of every arm's accuracies and costs."""
    body = []
    for name, group in by_arm(found).items():
        before = ["–", "–", "–"]
        if not group[0].trial.arm.is_scratch:
            subnets = [a for each in group for a in each.results["subnets_phase"]["accuracy"]]
            fall = max(each.accuracies[0] - each.accuracies.min() for each in group)
            composed = [each.accuracies[0] for each in group]
            before = [spread(subnets), spread(composed), f"{100 * fall:.1f}"]
        final = spread([each.accuracy for each in group])
        device, several, operations = group[0].costs[-1]
        costs = [f"{device:.0f}", f"{several:.0f}", f"{operations / 1e12:.1f}"]
        body.append([name, str(len(group)), *before, final, *costs])
    head = ["arm", "seeds", "sub-networks, %", "composed, %", "largest fall, points", "final, %"]
    count = devices(found[0].trial.study)
    return table([*head, "device-seconds", f"seconds on {count} devices", "TFLOP"], body)


def _speedups(found: Sequence[Outcome]) -> str:
    """Return a speed-up table for each way to decompose samples.

    Each trains a different global network, so that arms are compared within it only.
    """
    kinds: dict[str, list[Outcome]] = {}
    for each in found:
        kinds.setdefault(each.trial.settings.network.samples, []).append(each)
    return "\n\n".join(map(_against_scratch, kinds.values()))


def _against_scratch(found: Sequence[Outcome]) -> str:
    """Return how much sooner each arm reaches the final accuracy of the best arm from scratch."""
    baseline = best(found, scratch=True)
    if not baseline:
        return "No arm from scratch has finished with these samples."
    name = baseline[0].trial.arm.name
    body = []
    for arm, group in by_arm(found).items():
        if arm == name:
            continue
        pairs = paired(baseline, group)
        ratios = sooner(pairs)
        cells = [f"{ratio:.2f}×" for ratio in np.mean(ratios, axis=0)] if ratios else ["–"] * 3
        body.append([arm, f"{len(ratios)} of {len(pairs)}", *cells, spread(gains(pairs), "+")])
    head = ["arm", "seeds that reach it", "device-seconds"]
    head += [f"seconds on {devices(found[0].trial.study)} devices", "operations"]
    head += ["final accuracy, points above"]
    return (
        f"Against `{name}`, seed by seed: the cost at which its curve first reaches its final "
        f"accuracy, over the cost at which the arm's does.\n\n{table(head, body)}"
    )


def _length_table(compared: Sequence[Length]) -> str:
    body = []
    for each in compared:
        cells = [str(each.width), str(each.epochs)]
        for side in (each.scratch, each.transfer):
            cells += [side[0].trial.arm.name, spread([one.accuracy for one in side])]
        operations = each.transfer[0].costs[-1, 2] / each.scratch[0].costs[-1, 2]
        fewer = f"{np.mean(each.ratios):.2f}×" if each.ratios else "–"
        reached = f"{len(each.ratios)} of {len(each.gains)}"
        body.append([*cells, f"{operations:.2f}", spread(each.gains, "+"), fewer, reached])
    head = ["width", "epochs from scratch", "best from scratch", "%", "best transfer", "%"]
    head += ["operations, of scratch", "gain, points", "operations to that accuracy, fewer by"]
    command = "    python -m experiments.study --only length-wWIDTH-eEPOCHS"
    versions = _versions([each for one in compared for each in one.scratch + one.transfer])
    return f"{command}\n\n{versions}\n\n{table([*head, 'seeds that reach it'], body)}"


def spread(fractions: Sequence[float], sign: str = "") -> str:
    """Return mean ± standard deviation in percent; `sign="+"` shows the sign of a positive mean.

    >>> spread([0.50, 0.52]), spread([0.5]), spread([0.005, 0.015], "+")
    ('51.0 ± 1.4', '50.0', '+1.0 ± 0.7')
    """
    mean = f"{100 * np.mean(fractions):{sign}.1f}"
    return mean if len(fractions) < 2 else f"{mean} ± {100 * np.std(fractions, ddof=1):.1f}"
