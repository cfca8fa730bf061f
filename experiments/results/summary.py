"""The closing table: what a run measured, for a person to read, on a terminal or in a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.results.schema import Results
from experiments.results.speedup import blew_up, learned, standard_error

if TYPE_CHECKING:  # at run time it would import JAX
    from dcjax.method import Composed, GlobalPhase, SubnetsPhase

STAND_IN = (
    "THIS IS NOT CIFAR-10 but scikit-learn's handwritten digits. The figures show that everything "
    "runs, and say nothing about any other data set. Settings that suit digits: --preset digits."
)


def show(results: Results, console: Console, *, asked: str = "auto") -> None:
    """Print the results; first a notice if the data is a stand-in for what was asked for."""
    if results["dataset"] == "digits" != asked:
        console.print(Text(STAND_IN))
    console.print(_table(results))
    for entry in results["subnets_phase"].get("diverged", ()):
        then = {"drop": "dropped", "restart": "restarted"}[entry["then"]]
        console.print(f"sub-network {entry['subnet']} diverged at step {entry['step']}: {then}")
    console.print(Text(_bounds(results["composed"])))
    console.print(Text(verdict(results)))


def _table(results: Results) -> Table:
    table = Table(
        title=f"{results['dataset']}, subnets {results['subnets']}, seed {results['seed']}",
        title_justify="left",
        title_style="bold",
        caption="seconds of training, without evaluation and compilation; device s: times the "
        "number of physical devices that took part",
        caption_justify="left",
    )
    table.add_column("stage", no_wrap=True)
    for name in ("epochs", "accuracy", "loss", "seconds", "device s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(results):
        table.add_row(*row)
    return table


def rows(results: Results) -> Iterator[tuple[str, ...]]:
    """Yield the table's rows: each sub-network, composed, fine-tuned, and the baseline if any."""
    subnets, composed = results["subnets_phase"], results["composed"]
    for k, (accuracy, cost) in enumerate(zip(subnets["accuracy"], subnets["cost"], strict=True)):
        row = _row(f"sub-network {k}", subnets, accuracy, cost)
        # They ran together: one time for all.
        yield row if k == 0 else (row[0], "", *row[2:4], "", "")
    seconds = f"{composed['seconds']:.2f}"
    yield "composed", "", percent(composed["accuracy"]), nats(composed["cost"]), seconds, seconds
    for name, stage in (("fine-tuned", results["finetune"]), ("baseline", results["baseline"])):
        if name == "fine-tuned" or stage["epochs"]:
            yield _row(name, stage, stage["accuracy"], stage["cost"])


def _row(
    name: str, stage: SubnetsPhase | GlobalPhase, accuracy: float, cost: float | None
) -> tuple[str, ...]:
    times = f"{stage['seconds']:.1f}", f"{stage['device_seconds']:.1f}"
    return name, str(stage["epochs"]), percent(accuracy), nats(cost), *times


def _bounds(composed: Composed) -> str:
    accuracies = composed["accuracy_lower"], composed["accuracy"], composed["accuracy_upper"]
    costs = composed["cost_lower"], composed["cost"], composed["cost_upper"]
    error = composed["feature_error"]
    return (
        f"composed, between its bounds: accuracy {' ≤ '.join(map(percent, accuracies))}\n"
        f"                              loss     {' ≤ '.join(map(nats, costs))}\n"
        f"composed against sub-networks, largest feature error: "
        + ("all zero, or NaN" if error is None else f"{error:.1e}")
    )


def verdict(results: Results) -> str:
    """Return the outcome in one sentence."""
    baseline, gain = results["baseline"], results["speedup"]
    classes, target = results["model"]["classes"], gain["target_accuracy"]
    if not baseline["epochs"]:
        return "No baseline was trained, so there is nothing to compare with."
    if baseline["cost"] is None:
        return "The baseline's training diverged, so there is nothing to compare with."
    images = gain["test_images"]
    if not learned(target, classes, images):
        return (
            f"{images} test images cannot tell the baseline's {percent(target)} from guessing "
            f"({percent(1 / classes)}), so there is nothing to compare with."
        )
    if blew_up(baseline["cost"], classes):
        return (
            f"The baseline's loss, {nats(baseline['cost'])}, is worse than that of guessing "
            f"({nats(math.log(classes))}): its training blew up, so there is nothing to compare "
            "with. A lower --learning-rate may help."
        )
    error = f"(± {percent(standard_error(target, images))}, standard error of {images} test images)"
    if gain["wall"] is None:
        stages = (results["subnets_phase"], results["composed"], results["finetune"])
        total = sum(stage["seconds"] for stage in stages)
        best = max(entry["accuracy"] for entry in results["finetune"]["curve"])
        return (
            f"Not reached: the baseline's {percent(target)} {error} in "
            f"{baseline['seconds']:.1f} s; "
            f"sub-networks, composition and fine-tuning came to {percent(best)} in {total:.1f} s."
        )
    return (
        f"Reached the baseline's {percent(target)} {error} in {gain['seconds']:.1f} s, against "
        f"{gain['baseline_seconds']:.1f} s from scratch: {gain['wall']:.2f}× in wall-clock time, "
        f"{gain['device']:.2f}× in device time."
    )


def percent(fraction: float) -> str:
    """Return a fraction as a percentage.

    >>> percent(0.5)
    '50.00 %'
    """
    return f"{100 * fraction:.2f} %"


def nats(cost: float | None) -> str:
    """Return a cost to four places; None stands for the NaN of a training that diverged.

    >>> nats(0.25), nats(None)
    ('0.2500', 'diverged')
    """
    return "diverged" if cost is None else f"{cost:.4f}"
