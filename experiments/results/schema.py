"""The results of a run: what `results.json` holds. `run.workdir` writes and reads it.

In the file, null stands for NaN and infinity, which JSON has not.
"""

from typing import TYPE_CHECKING, NotRequired, TypedDict

if TYPE_CHECKING:  # at run time it would import JAX
    from dcjax.method import Composed, GlobalPhase, SubnetsPhase


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


Operations = TypedDict("Operations", {"subnets": float, "global": float})
"""Floating-point operations of an epoch: of all K sub-networks, and of the global network."""


class Results(TypedDict):
    """All of it; the order of the keys is that of the file."""

    dataset: str
    subnets: int
    seed: int
    model: Model
    versions: dict[str, str]
    devices: Devices
    compile_seconds: dict[str, float]
    operations_per_epoch: NotRequired[Operations]
    subnets_phase: "SubnetsPhase"
    composed: "Composed"
    finetune: "GlobalPhase"
    baseline: "GlobalPhase"
    speedup: Speedup
