"""CIFAR-10 at width 32, the quick preset.

Question: does the transfer end higher than a tuned network from scratch, for less?
Command:  python -m experiments.study --only cifar10 --data-dir DIR
Hardware: two cores of an AMD EPYC (Zen 4, AVX-512).
Hours:    2 for all 68 trials.
Result:   8 + 2 epochs end at 68.2 ± 0.6 %, 3.4 ± 0.6 points above 6 epochs from scratch, for 0.90
          of the seconds and 0.69 of the operations.

Each setting is tuned on seed 0, from scratch at least as often as in the transfer.
"""

from typing import Any

from experiments.study.arms import Study, averaged, scratch

WARM = "scratch-longer-warm-up"
RATES = {0.2: 1, 0.4: None, 0.8: None, 1.6: 1}  # the best two with all seeds
ANNEALED: dict[str, Any] = {
    "subnet_final_rate": 0.0,
    "finetune_rate": 0.2,
    "finetune_warmup_epochs": 0.5,
    "carry_momentum": False,
    "average": 0.0,
}

STUDIES = (
    Study(
        "cifar10",
        "CIFAR-10, 10,000 training images, ResNet-8 of width 32, four sub-networks of width 8",
        {"dataset": "cifar10"},
        (
            *(scratch(6, rate, seeds=seeds) for rate, seeds in RATES.items()),
            scratch(6, 0.4, seeds=1, name="scratch-averaged", average=0.95),
            scratch(6, 0.4, seeds=1, name=WARM, warmup=1.5),
            scratch(6, 0.8, name=WARM, warmup=1.5),
            scratch(6, 1.6, seeds=1, name=WARM, warmup=1.5),
            scratch(6, 0.8, seeds=1, name="scratch-warm-up-2.5", warmup=2.5),
            scratch(6, 0.8, seeds=1, name=f"{WARM}-averaged", warmup=1.5, average=0.95),
            scratch(6, 0.8, seeds=1, name=f"{WARM}-smoothed", warmup=1.5, label_smoothing=0.1),
            averaged((4, 2), 0.8, name="longer-warm-up", warmup_epochs=1.5),
            *(averaged(epochs, 0.8) for epochs in ((6, 1), (6, 2), (8, 2))),
            scratch(4, 0.4),
            averaged((4, 2), 0.1, seeds=1),
            averaged((4, 2), 0.4, name="slow-head", head_rate=1 / 4),
            *(averaged((4, 2), rate, seeds=seeds) for rate, seeds in RATES.items()),
            averaged((4, 1), 0.4, seeds=1),
            averaged((6, 1), 0.4),
            averaged((4, 2), 0.4, name="K2", subnets=2),
            averaged((4, 2), 0.4, name="half-K8", subnets=8, head_rate=0.5),
            averaged((4, 2), 0.4, seeds=1, name="falling-to-0.2", finetune_rate=0.2),
            averaged((6, 1), 0.4, seeds=1, name="falling-to-0.1", finetune_rate=0.1),
            averaged((4, 2), 0.2, seeds=1, name="averaged-then-0.4", finetune_rate=0.4),
            averaged((4, 2), 0.4, seeds=1, name="averaged-over-50-steps", average=0.98),
            averaged((4, 2), 0.4, seeds=1, name="averaged-new-momentum", carry_momentum=False),
            averaged((4, 2), 0.4, name="one-schedule", average=0.0),
            averaged((4, 2), 0.8, name="one-schedule", average=0.0),
            averaged((4, 2), 0.4, seeds=1, **ANNEALED)._replace(name="annealed-4+2-rates-0.4-0.2"),
            scratch(6, 0.8, seeds=1, name="scratch-smoothed", label_smoothing=0.1),
            averaged((4, 2), 0.8, seeds=1, name="smoothed", label_smoothing=0.1),
        ),
    ),
)
