"""CIFAR-10: copies that are averaged rarely, in fine-tuning and from scratch.

Question: which accuracy remains if the second stage hardly communicates, and what do rare averages
          from scratch (local SGD, DiLoCo) reach for the same epochs?
Command:  python -m experiments.study --only cifar10-rarely --data-dir DIR
Hardware: two cores of an AMD EPYC (Zen 4, AVX-512).
Result:   docs/scaling.md.

In one process there are four copies, with 32 of each 128 images. An epoch has 78 steps. A copy's
batch is a quarter, and so is the rate that suits it: at the rate of the whole batch, 0.8,
fine-tuning falls below the composed network.
"""

from typing import Any

from experiments.study.arms import Arm, Study, averaged, scratch


def _tuned(name: str, rate: float, every: int, **flags: Any) -> Arm:
    flags |= {"finetune_rate": rate, "average_every": every}
    return averaged((8, 2), 0.8, seeds=1, name=f"{name}-then-{rate}", **flags)


def _from_scratch(name: str, rate: float, **flags: Any) -> Arm:
    return scratch(6, rate, seeds=1, name=f"scratch-{name}", warmup=1.5, **flags)


STUDIES = (
    Study(
        "cifar10-rarely",
        "CIFAR-10, 10,000 training images, ResNet-8 of width 32, four copies",
        {"dataset": "cifar10"},
        (
            averaged((8, 2), 0.8, seeds=1, name="every-50", average_every=50),
            _tuned("every-50", 0.2, 50),
            _from_scratch("diloco-50", 0.4, baseline_average_every=50, outer_rate=0.7),
            _from_scratch("every-50", 0.4, baseline_average_every=50),
            _tuned("once", 0.2, 0),
            _tuned("every-50", 0.4, 50),
            _from_scratch("diloco-50", 0.2, baseline_average_every=50, outer_rate=0.7),
            _from_scratch("every-50", 0.2, baseline_average_every=50),
        ),
    ),
)
