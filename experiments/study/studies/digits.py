"""Handwritten digits: a broad sweep of numbers of sub-networks and of samples.

Question: which K and which samples work at all, and what does depth change?
Command:  python -m experiments.study --only digits digits-deep
Hardware: two cores of an AMD EPYC (Zen 4, AVX-512); digits-deep on Zen 3 (AVX2).
Hours:    0.7 for all 61 trials.
Result:   with eight sub-networks of width 4 the head needs a smaller rate. Tiles and phases end 1.3
          and 0.5 points above training from scratch on the same samples, ResNet-14 0.9 points.

The records keep one trial of an arm of commit 4ffa14d, off-diagonal-4x: the pace is that trial's.
"""

from experiments.study.arms import Study, averaged, scratch

DIGITS = {"dataset": "digits", "train_size": 1400}

STUDIES = (
    Study(
        "digits",
        "Handwritten digits (340 test images), ResNet-8 of width 32, four sub-networks of width 8 "
        "unless the arm names another K",
        DIGITS,
        (
            scratch(12, 0.1, seeds=1),
            scratch(12, 0.2),
            averaged((8, 4), 0.2),
            averaged((10, 2), 0.2),
            averaged((8, 4), 0.2, name="slow-head", head_rate=1 / 4),
            averaged((8, 4), 0.2, name="K2", subnets=2),
            averaged((8, 4), 0.2, name="slow-head-K2", subnets=2, head_rate=1 / 2),
            averaged((8, 4), 0.2, name="K8", subnets=8, head_rate=1.0),
            averaged((8, 4), 0.2, name="slow-head-K8", subnets=8, head_rate=1 / 8),
            averaged((8, 4), 0.2, name="half-K8", subnets=8, head_rate=0.5),
            averaged((8, 4), 0.2, name="tiles", samples="tiles"),
            scratch(12, 0.2, name="scratch-tiles", samples="tiles"),
            averaged((8, 4), 0.2, name="phases", samples="phases"),
            scratch(12, 0.2, name="scratch-phases", samples="phases"),
            averaged((8, 4), 0.2, name="bands", samples="bands"),
            scratch(12, 0.2, name="scratch-bands", samples="bands"),
            averaged((8, 4), 0.2, name="smoothed", label_smoothing=0.1),
            averaged((8, 4), 0.2, name="new-momentum", carry_momentum=False),
            averaged((8, 4), 0.2, name="warmed-up", finetune_warmup_epochs=1.0),
        ),
    ),
    Study(
        "digits-deep",
        "Handwritten digits, ResNet-14 of width 32, four sub-networks of width 8",
        {**DIGITS, "depth": 14},
        (scratch(12, 0.2), averaged((8, 4), 0.2)),
    ),
)
