"""The closing table: what a run measured, for a person to read, on a terminal or in a file."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.results.schema import Results
from experiments.results.speedup import blew_up, learned, standard_error
from experiments.results.units import clock, counted, nats, operations, percent, unit_of, wrapped

STAND_IN = (
    "THIS IS NOT CIFAR-10 but scikit-learn's handwritten digits. The figures show that everything "
    "runs, and say nothing about any other data set. Settings that suit digits: --preset digits."
)
LISTED = 4
"""Up to this many sub-networks have a row each; of more, the worst and the best."""
EXACT = 1e-4
"""Feature maps that differ by less, relatively, differ by rounding only."""


class Row(NamedTuple):
    """A row of the closing table; None where a row has no such value.

    Attributes:
      device_seconds: seconds times the number of physical devices that took part.
      operations: floating-point operations of training; None if unknown, too.
    """

    stage: str
    epochs: int | None = None
    accuracy: float | None = None
    loss: float | str | None = None
    seconds: float | None = None
    operations: float | None = None
    device_seconds: float | None = None


def show(results: Results, console: Console, *, asked: str = "auto") -> None:
    """Print the results; first a notice if the data is a stand-in for what was asked for."""
    if results["dataset"] == "digits" != asked:
        console.print(Text(STAND_IN))
    head, body = table(rows(results))
    shown = Table(
        title=title(results),
        title_justify="left",
        title_style="bold",
        caption="time of training; sub-networks: mean, and one time for all",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in head:
        shown.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for line in body:
        shown.add_row(*line)
    console.print(shown)
    for line in conclusions(results):
        console.print(Text(wrapped(line, console.width)), soft_wrap=True)


def title(results: Results) -> str:
    """Return the run's data, number of sub-networks and seed."""
    subnets = counted(results["subnets"], "sub-network")
    return f"{results['dataset']}, {subnets}, seed {results['seed']}"


def rows(results: Results) -> Iterator[Row]:
    """Yield the table's rows: sub-networks, composed, fine-tuned, their sum, and the baseline."""
    subnets, composed = results["subnets_phase"], results["composed"]
    finetune, baseline = results["finetune"], results["baseline"]
    each = results.get("operations_per_epoch")
    spent = subnets["epochs"] * each["subnets"] if each else None
    finite = [cost for cost in subnets["cost"] if cost is not None]
    yield Row(
        "sub-networks",
        subnets["epochs"],
        statistics.fmean(subnets["accuracy"]),
        statistics.fmean(finite) if len(finite) == len(subnets["cost"]) else "diverged",
        subnets["seconds"],
        spent,
        subnets["device_seconds"],
    )
    pairs = zip(subnets["accuracy"], subnets["cost"], strict=True)
    single = [Row(f"  sub-network {k}", None, a, nats(c)) for k, (a, c) in enumerate(pairs)]
    if len(single) > LISTED:
        ranked = sorted(single, key=lambda row: row.accuracy or 0)
        single = [ranked[0]._replace(stage="  worst"), ranked[-1]._replace(stage="  best")]
    yield from single if results["subnets"] > 1 else ()
    seconds = composed["seconds"]
    yield Row(
        "composed", None, composed["accuracy"], nats(composed["cost"]), seconds, None, seconds
    )
    for name, stage in (("fine-tuned", finetune), ("baseline", baseline)):
        if name == "baseline" and not stage["epochs"]:
            continue
        if name == "baseline":
            yield Row(
                "dcjax in all",
                seconds=subnets["seconds"] + seconds + finetune["seconds"],
                operations=each and (spent or 0) + finetune["epochs"] * each["global"],
                device_seconds=subnets["device_seconds"] + seconds + finetune["device_seconds"],
            )
        yield Row(
            name,
            stage["epochs"],
            stage["accuracy"],
            nats(stage["cost"]),
            stage["seconds"],
            stage["epochs"] * each["global"] if each else None,
            stage["device_seconds"],
        )


def table(found: Iterator[Row] | Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the closing table.

    Operations and device seconds have a column if they are known, and differ from the seconds.
    """
    found = list(found)
    unit, size = unit_of(max((row.operations or 0 for row in found), default=0))
    several = any(row.device_seconds != row.seconds for row in found)

    def line(row: Row) -> dict[str, str]:
        cells = {
            "stage": row.stage,
            "epochs": "" if row.epochs is None else str(row.epochs),
            "accuracy": "" if row.accuracy is None else percent(row.accuracy),
            "loss": row.loss if isinstance(row.loss, str) else "",
            "time": "" if row.seconds is None else clock(row.seconds),
        }
        if isinstance(row.loss, float):
            cells["loss"] = nats(row.loss)
        if unit != "FLOP":
            cells[unit] = "" if row.operations is None else f"{row.operations / size:.3g}"
        if several:
            known = row.device_seconds is not None
            cells["device time"] = clock(row.device_seconds or 0) if known else ""
        return cells

    lines = [line(row) for row in found]
    return list(lines[0]), [list(each.values()) for each in lines]


def conclusions(results: Results) -> Iterator[str]:
    """Yield what the figures mean, a sentence each."""
    for entry in results["subnets_phase"].get("diverged", ()):
        then = {"drop": "dropped", "restart": "restarted"}[entry["then"]]
        yield f"Sub-network {entry['subnet']} diverged at step {entry['step']}: {then}."
    composed = results["composed"]
    accuracies = composed["accuracy_lower"], composed["accuracy"], composed["accuracy_upper"]
    costs = composed["cost_lower"], composed["cost"], composed["cost_upper"]
    yield f"Composed, between its bounds: accuracy {' ≤ '.join(map(percent, accuracies))}"
    yield f"  and loss {' ≤ '.join(map(nats, costs))}"
    yield exactness(composed["feature_error"])
    yield verdict(results)
    if end := comparison(results):
        yield end


def exactness(error: float | None) -> str:
    """Say how well the composed network's feature maps agree with the sub-networks'.

    >>> print(exactness(3e-7))
    Composed against sub-networks: exact up to rounding (largest feature error 3.0e-07).
    """
    if error is None:
        return "Composed against sub-networks: all feature maps are zero, or NaN."
    word = "exact up to rounding" if error < EXACT else "NOT exact"
    return f"Composed against sub-networks: {word} (largest feature error {error:.1e})."


def verdict(results: Results) -> str:
    """Return in one sentence how fast the baseline's accuracy was reached."""
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
    if gain["wall"] is None or gain["seconds"] is None or gain["baseline_seconds"] is None:
        stages = (results["subnets_phase"], results["composed"], results["finetune"])
        total = sum(stage["seconds"] for stage in stages)
        best = max(entry["accuracy"] for entry in results["finetune"]["curve"])
        return (
            f"Not reached: the baseline's {percent(target)} in {clock(baseline['seconds'])}; "
            f"dcjax came to {percent(best)} in {clock(total)}."
        )
    sides = f"in {clock(gain['seconds'])}, against {clock(gain['baseline_seconds'])} from scratch"
    said = f"Reached the baseline's {percent(target)} {sides}: {times(gain['wall'])}"
    if gain["device"] is not None and f"{gain['device']:.2f}" != f"{gain['wall']:.2f}":
        said += f"; in device time {times(gain['device'])}"
    return said + "."


def times(ratio: float) -> str:
    """Return a ratio of times as a word and a number of at least 1.

    >>> times(2.0), times(0.5), times(1.0)
    ('2.00 times faster', '2.00 times slower', 'equally fast')
    """
    if f"{ratio:.2f}" == "1.00":
        return "equally fast"
    return f"{ratio:.2f} times faster" if ratio > 1 else f"{1 / ratio:.2f} times slower"


def comparison(results: Results) -> str:
    """Return in one sentence how the final accuracies differ; "" without a sound baseline.

    The error of the difference is that of two separate test sets: the true one is smaller.
    """
    baseline, gain = results["baseline"], results["speedup"]
    if not baseline["epochs"] or baseline["cost"] is None:
        return ""
    ends = results["finetune"]["accuracy"], baseline["accuracy"]
    errors = [standard_error(end, gain["test_images"]) for end in ends]
    difference, error = ends[0] - ends[1], math.hypot(*errors)
    word = "better than the baseline's" if difference > 0 else "worse than the baseline's"
    if abs(difference) <= 2 * error:
        word = "equal to the baseline's within the error"
    said = (
        f"Final accuracy {word}: {percent(ends[0])} against {percent(ends[1])}, "
        f"{100 * difference:+.2f} ± {100 * error:.2f} points ({gain['test_images']} test images)"
    )
    if each := results.get("operations_per_epoch"):
        own = results["subnets_phase"]["epochs"] * each["subnets"]
        own += results["finetune"]["epochs"] * each["global"]
        other = baseline["epochs"] * each["global"]
        said += f", for {operations(own)} against {operations(other)}"
    return said + "."
