"""CIFAR-10 at width 128, on the image's four phases so that two cores can train the network.

Question: does the gain hold at four times the quick preset's width?
Command:  python -m experiments.study --only cifar10-widest --data-dir DIR
Hardware: two cores of an AMD EPYC (Zen 4, AVX-512).
Hours:    3.1 for all 22 trials.
Result:   8 + 2 epochs end at 69.4 ± 0.4 %, 5.1 ± 1.2 points above 6 epochs from scratch. They pass
          its accuracy when they are composed, in 2.81 times less time.
"""

from experiments.study.arms import Study, averaged, scratch

STUDIES = (
    Study(
        "cifar10-widest",
        "CIFAR-10, 10,000 training images, ResNet-8 of width 128, four sub-networks of width 32, "
        "each of which sees every second row and column",
        {"dataset": "cifar10", "width": 128, "samples": "phases"},
        (
            scratch(6, 0.4, seeds=1, name="scratch-phases"),
            scratch(6, 0.2, name="scratch-phases"),
            scratch(6, 0.1, name="scratch-phases"),
            scratch(6, 0.05, seeds=1, name="scratch-phases"),
            scratch(6, 0.2, name="scratch-longer-warm-up", warmup=1.5),
            scratch(6, 0.4, seeds=1, name="scratch-longer-warm-up", warmup=1.5),
            averaged((6, 1), 0.8, seeds=1, name="phases"),
            averaged((6, 1), 0.4, name="phases"),
            averaged((6, 2), 0.4, seeds=1, name="phases", evaluate_every=26),
            averaged((8, 2), 0.4, name="phases", evaluate_every=26),
            averaged((6, 1), 0.2, seeds=1, name="phases"),
            averaged((6, 1), 0.4, seeds=1, name="slow-head-phases", head_rate=1 / 4),
        ),
    ),
)
