"""The results of a run: what `results.json` holds. `run.workdir` writes and reads it.

In the file, null stands for NaN and infinity, which JSON has not.
"""

from typing import NotRequired, TypedDict


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


class SubnetsPhase(TypedDict):
    """The training of the sub-networks; accuracies and costs of each."""

    epochs: int
    seconds: float
    device_seconds: float
    accuracy: list[float]
    cost: list[float | None]
    diverged: NotRequired[list[Divergence]]


class Bounds(TypedDict):
    """The bounds of the composed network's accuracy and cost, from the sub-networks' logits."""

    accuracy_lower: float
    accuracy_upper: float
    cost_lower: float | None
    cost_upper: float | None


class Composed(Bounds):
    """The composed network before fine-tuning."""

    accuracy: float
    cost: float | None
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


class Speedup(TypedDict):
    """The times to the baseline's final accuracy; null where it was not reached."""

    target_accuracy: float
    test_images: int
    seconds: float | None
    baseline_seconds: float | None
    wall: float | None
    device: float | None


class Model(TypedDict):
    """The global network, and the number of parameters of both kinds of network."""

    name: str
    depth: int
    width: int
    classes: int
    samples: str
    precision: str
    convolutions: str
    parameters: int
    subnet_parameters: int


class Devices(TypedDict):
    """The devices there were, and how many of them each stage used."""

    platform: str
    kind: str
    processor: str
    cpu_threads: int
    count: int
    physical: int
    used: dict[str, int]


class Results(TypedDict):
    """All of it; the order of the keys is that of the file."""

    dataset: str
    subnets: int
    seed: int
    model: Model
    versions: dict[str, str]
    devices: Devices
    compile_seconds: dict[str, float]
    subnets_phase: SubnetsPhase
    composed: Composed
    finetune: GlobalPhase
    baseline: GlobalPhase
    speedup: Speedup
