"""How much sooner the transfer reaches the baseline's accuracy than the baseline itself."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Phase = Mapping[str, Any]


def speedup(
    subnets_phase: Phase, composed: Phase, finetune: Phase, baseline: Phase, *, classes: int
) -> dict[str, float | None]:
    """The times to the baseline's final accuracy: baseline over transfer.

    Both sides' clocks stop at the first entry of their curve that reaches the target. The
    transfer's time is the sub-networks', the composition's, and fine-tuning's up to there; nothing
    of fine-tuning where the composed network, the curve's epoch 0, has reached it already.

    Returns:
      `target_accuracy`; `seconds` and `baseline_seconds`, what the two took; `wall` and `device`,
      the ratios of wall-clock and of device seconds. All but the first are None where the target
      was not reached, or there is none: no baseline, one that diverged, or one that has learned
      nothing (`learned`).
    """
    target = baseline["accuracy"]
    none = dict.fromkeys(("seconds", "baseline_seconds", "wall", "device"))
    reached, own = (first_reaching(phase["curve"], target) for phase in (finetune, baseline))
    trained = baseline["epochs"] and math.isfinite(baseline["cost"]) and learned(target, classes)
    if reached is None or own is None or not trained:
        return {"target_accuracy": target, **none}

    def transfer(kind: str) -> float:
        # The composition runs on one device: its device seconds are its seconds.
        return subnets_phase[kind] + composed["seconds"] + reached[kind]

    def ratio(kind: str) -> float | None:
        return own[kind] / transfer(kind) if transfer(kind) > 0 else None

    return {
        "target_accuracy": target,
        "seconds": transfer("seconds"),
        "baseline_seconds": own["seconds"],
        "wall": ratio("seconds"),
        "device": ratio("device_seconds"),
    }


def learned(accuracy: float, classes: int) -> bool:
    """Whether an accuracy is more than guessing's, by two points.

    >>> learned(0.1, classes=10), learned(0.3, classes=10)
    (False, True)
    """
    return accuracy >= 1 / classes + 0.02


def first_reaching(curve: Sequence[Phase], accuracy: float) -> Phase | None:
    """The first entry of a curve whose accuracy is at least the given one; None if none is.

    What has diverged, so that its cost is no number, reaches nothing.

    >>> first_reaching([{"accuracy": 0.4, "cost": 1.5}, {"accuracy": 0.6, "cost": 1.2}], 0.5)
    {'accuracy': 0.6, 'cost': 1.2}
    """
    good = (e for e in curve if e["accuracy"] >= accuracy and math.isfinite(e["cost"]))
    return next(good, None)
