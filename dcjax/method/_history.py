"""The plain numbers of a run, stage by stage: of `Result.history` and the experiments' results."""

import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict


def json_values(value: Any) -> Any:
    """Return nested dicts and lists with None for NaN and infinity, which JSON does not have.

    >>> json_values({"cost": [1.5, float("nan")]})
    {'cost': [1.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class CurveEntry(TypedDict):
    """An evaluation of the global network on the test split, after some training time."""

    epoch: float
    seconds: float
    device_seconds: float
    accuracy: float
    cost: float | None


class Divergence(TypedDict):
    """A sub-network that diverged at a step, and what was done: `restart` or `drop`."""

    subnet: int
    step: int
    then: str


class SubnetsEntry(TypedDict):
    """An evaluation of each sub-network on the test split, after some training time."""

    epoch: float
    seconds: float
    device_seconds: float
    accuracy: list[float]
    cost: list[float | None]


class SubnetsPhase(TypedDict):
    """The training of the sub-networks; accuracies and costs of each.

    The curve is empty if they were not trained all at once.
    """

    epochs: int
    seconds: float
    device_seconds: float
    accuracy: list[float]
    cost: list[float | None]
    curve: list[SubnetsEntry]
    diverged: NotRequired[list[Divergence]]


class Composed(TypedDict):
    """The composed network before fine-tuning, and its bounds from the sub-networks' logits."""

    accuracy: float
    cost: float | None
    accuracy_lower: float
    accuracy_upper: float
    cost_lower: float | None
    cost_upper: float | None
    seconds: float
    feature_error: float | None


class GlobalPhase(TypedDict):
    """A training of the global network: fine-tuning, or the baseline."""

    epochs: int
    seconds: float
    device_seconds: float
    accuracy: float
    cost: float | None
    curve: list[CurveEntry]
