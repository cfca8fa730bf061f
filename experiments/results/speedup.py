"""How much sooner the transfer reaches the baseline's accuracy than the baseline itself."""

import math
from collections.abc import Sequence

from experiments.results.schema import Composed, CurveEntry, GlobalPhase, Speedup, SubnetsPhase


def speedup(
    subnets_phase: SubnetsPhase,
    composed: Composed,
    finetune: GlobalPhase,
    baseline: GlobalPhase,
    *,
    classes: int,
) -> Speedup:
    """Compare the times to the baseline's final accuracy: baseline over transfer.

    Each side's time ends at the first entry of its curve that reaches the target. The transfer's
    time is that of the sub-networks, of the composition, and of fine-tuning up to that entry; the
    composed network is the curve's epoch 0, which needs no fine-tuning.

    Returns:
      `target_accuracy`; `seconds` and `baseline_seconds`, the times of both; `wall` and `device`,
      the ratios of wall-clock and of device seconds. All but the first are None if the target was
      not reached, or if the baseline was not trained, diverged, or does not beat guessing.
    """
    target, cost = baseline["accuracy"], baseline["cost"]
    reached, own = (first_reaching(stage["curve"], target) for stage in (finetune, baseline))
    trained = baseline["epochs"] and cost is not None and math.isfinite(cost)
    if reached is None or own is None or not trained or not learned(target, classes):
        return {
            "target_accuracy": target,
            "seconds": None,
            "baseline_seconds": None,
            "wall": None,
            "device": None,
        }

    # The composition runs on one device: its device seconds are its seconds.
    before = composed["seconds"]
    seconds = subnets_phase["seconds"] + before + reached["seconds"]
    device_seconds = subnets_phase["device_seconds"] + before + reached["device_seconds"]
    return {
        "target_accuracy": target,
        "seconds": seconds,
        "baseline_seconds": own["seconds"],
        "wall": own["seconds"] / seconds if seconds else None,
        "device": own["device_seconds"] / device_seconds if device_seconds else None,
    }


def learned(accuracy: float, classes: int) -> bool:
    """Return whether an accuracy is at least two points better than guessing.

    >>> learned(0.1, classes=10), learned(0.3, classes=10)
    (False, True)
    """
    return accuracy >= 1 / classes + 0.02


def first_reaching(curve: Sequence[CurveEntry], accuracy: float) -> CurveEntry | None:
    """Return the first entry of at least this accuracy and a finite cost, or None.

    >>> def entry(accuracy, cost):
    ...     return {"accuracy": accuracy, "cost": cost}
    >>> first_reaching([entry(0.4, 1.5), entry(0.6, math.nan), entry(0.6, 1.2)], 0.5)
    {'accuracy': 0.6, 'cost': 1.2}
    """
    for entry in curve:
        cost = entry["cost"]
        if entry["accuracy"] >= accuracy and cost is not None and math.isfinite(cost):
            return entry
    return None
