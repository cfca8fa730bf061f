"""How much sooner the transfer reaches the baseline's accuracy than the baseline itself."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Phase = Mapping[str, Any]


def speedup(
    subnets_phase: Phase, composed: Phase, finetune: Phase, baseline: Phase
) -> dict[str, float | None]:
    """The times to the baseline's final accuracy: baseline over transfer.

    The transfer's time is the sub-networks', the composition's, and fine-tuning's up to the first
    entry of its curve that reaches the target; nothing of fine-tuning where the composed network,
    the curve's epoch 0, has reached it already. The baseline's is all of its training.

    Returns:
      `target_accuracy`; `wall` and `device`, the ratios of wall-clock and of device seconds, None
      where the target was not reached, or there was no baseline or it diverged.
    """
    target = baseline["accuracy"]
    reached = first_reaching(finetune["curve"], target)
    if reached is None or not baseline["epochs"] or not math.isfinite(baseline["cost"]):
        return {"target_accuracy": target, "wall": None, "device": None}

    def ratio(kind: str) -> float | None:
        # The composition runs on one device: its device seconds are its seconds.
        transfer = subnets_phase[kind] + composed["seconds"] + reached[kind]
        return baseline[kind] / transfer if transfer > 0 else None

    return {"target_accuracy": target, "wall": ratio("seconds"), "device": ratio("device_seconds")}


def first_reaching(curve: Sequence[Phase], accuracy: float) -> Phase | None:
    """The first entry of a curve whose accuracy is at least the given one; None if none is.

    What has diverged, so that its cost is no number, reaches nothing.

    >>> first_reaching([{"accuracy": 0.4, "cost": 1.5}, {"accuracy": 0.6, "cost": 1.2}], 0.5)
    {'accuracy': 0.6, 'cost': 1.2}
    """
    good = (e for e in curve if e["accuracy"] >= accuracy and math.isfinite(e["cost"]))
    return next(good, None)
