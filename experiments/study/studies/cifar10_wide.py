"""CIFAR-10 at width 64: the transfer with sub-networks that are good by themselves.

Question: does the gain grow with the width of the sub-networks?
Command:  python -m experiments.study --only cifar10-wide --data-dir DIR
Hardware: two cores of an AMD EPYC (Zen 4, AVX-512).
Hours:    3.2 for all 40 trials.
Result:   8 + 2 epochs end at 71.9 ± 0.2 %, 5.2 ± 0.8 points above 6 epochs from scratch. They pass
          its accuracy when they are composed, in 2.24 times less time.
"""

from typing import Any

from experiments.study.arms import Study, averaged, scratch

PHASES: dict[str, Any] = {"samples": "phases", "head_rate": 1 / 4}
BANDS: dict[str, Any] = {"samples": "bands", "head_rate": 1 / 4}

STUDIES = (
    Study(
        "cifar10-wide",
        "CIFAR-10, 10,000 training images, ResNet-8 of width 64, four sub-networks of width 16",
        {"dataset": "cifar10", "width": 64},
        (
            scratch(6, 0.2, seeds=1),
            scratch(6, 0.4),
            scratch(6, 0.8, seeds=1),
            scratch(6, 0.4, seeds=1, name="scratch-longer-warm-up", warmup=1.5),
            scratch(6, 0.8, name="scratch-longer-warm-up", warmup=1.5),
            averaged((6, 1), 0.4),
            averaged((6, 2), 0.4),
            averaged((8, 2), 0.4, evaluate_every=26),  # three times an epoch of 78 steps
            averaged((6, 1), 0.4, name="longer-warm-up", seeds=1, warmup_epochs=1.5),
            averaged((6, 1), 0.4, seeds=1, name="one-schedule", average=0.0),
            averaged((6, 1), 0.8, seeds=1),
            averaged((6, 1), 0.4, seeds=1, name="slow-head-phases", **PHASES),
            scratch(6, 0.4, name="scratch-phases", samples="phases", seeds=1),
            averaged((6, 1), 0.4, name="bands", samples="bands"),
            averaged((4, 2), 0.4, name="bands", samples="bands"),
            averaged((6, 1), 0.4, seeds=1, name="slow-head-bands", **BANDS),
            averaged((4, 2), 0.4, seeds=1, name="slow-head-bands", **BANDS),
            scratch(6, 0.4, name="scratch-bands", samples="bands"),
            averaged((4, 2), 0.4),
            averaged((4, 1), 0.4, seeds=1),
            averaged((7, 0), 0.8, seeds=1),
            averaged((6, 0), 0.4, 1, subnet_final_rate=0.0)._replace(name="composed-6-rate-0.4"),
        ),
    ),
)
