"""The speed-up: the times of transfer and baseline to the baseline's final accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.results.schema import Speedup

if TYPE_CHECKING:  # at run time it would import JAX
    from dcjax.method import Composed, CurveEntry, GlobalPhase, SubnetsPhase


def speedup(
    subnets_phase: SubnetsPhase,
    composed: Composed,
    finetune: GlobalPhase,
    baseline: GlobalPhase,
    *,
    classes: int,
    test_images: int,
) -> Speedup:
    """Compare the times to the baseline's final accuracy: baseline over transfer.

    Each side's time ends at the first entry of its curve that reaches the target. The transfer's
    time is that of the sub-networks, of the composition, and of fine-tuning up to that entry; the
    composed network is the curve's epoch 0, which needs no fine-tuning.

    Returns:
      `target_accuracy` and `test_images`; `seconds` and `baseline_seconds`, the times of both;
      `wall` and `device`, the ratios of wall-clock and of device seconds. Times and ratios are None
      if the target was not reached, or if the baseline was not trained, blew up, or has not
      learned.
    """
    target = baseline["accuracy"]
    reached, own = (first_reaching(stage["curve"], target) for stage in (finetune, baseline))
    sound = learned(target, classes, test_images) and not blew_up(baseline["cost"], classes)
    if reached is None or own is None or not baseline["epochs"] or not sound:
        return {
            "target_accuracy": target,
            "test_images": test_images,
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
        "test_images": test_images,
        "seconds": seconds,
        "baseline_seconds": own["seconds"],
        "wall": own["seconds"] / seconds if seconds else None,
        "device": own["device_seconds"] / device_seconds if device_seconds else None,
    }


def standard_error(accuracy: float, images: int) -> float:
    """Return the binomial standard error of an accuracy measured on so many images.

    >>> standard_error(0.5, images=10_000)
    0.005
    """
    return math.sqrt(accuracy * (1 - accuracy) / images)


def learned(accuracy: float, classes: int, images: int) -> bool:
    """Return whether a test set of so many images can tell an accuracy from guessing.

    It must be two points and two standard errors better.

    >>> learned(0.13, classes=10, images=10_000), learned(0.13, classes=10, images=340)
    (True, False)
    """
    guess = 1 / classes
    return accuracy >= guess + max(0.02, 2 * standard_error(guess, images))


def blew_up(cost: float | None, classes: int) -> bool:
    """Return whether a cost is NaN, infinite, or worse than that of guessing, log C.

    >>> blew_up(6.0, classes=10), blew_up(1.5, classes=10)
    (True, False)
    """
    return cost is None or not cost <= math.log(classes)


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
