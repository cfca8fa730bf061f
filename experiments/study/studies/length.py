"""CIFAR-10, all training images: the gain against the length of training.

Question: how much of the gain remains when both sides train as long as people train?
Command:  python -m experiments.study --only length-w32-e4 --data-dir DIR
Hardware: two cores of an AMD EPYC (Zen 4, AVX-512).
Hours:    about 0.6 for length-w32-e4; in proportion to the epochs, times 4 at width 64.
Result:   docs/results.md, "The longer the training".

Four epochs of four sub-networks take one epoch's operations, so that a split (S, F) of epochs costs
S/4 + F. Both sides get the operations of the same number of epochs from scratch, and five trials to
tune: four rates and another warm-up from scratch; three splits and two more rates in the transfer.
The best arm of each side has three seeds.
"""

from experiments.study.arms import Study, averaged, scratch


def _at_length(width: int, budget: int) -> Study:
    """Return the study of one width and one budget, the epochs from scratch."""
    splits = _SPLITS[budget]
    assert all(narrow / 4 + wide <= budget for narrow, wide in splits)
    arms = (
        scratch(budget, 0.4, seeds=1, warmup=1.5),
        *(averaged(split, 0.4, seeds=1) for split in splits),
        scratch(budget, 0.2, seeds=1, warmup=1.5),
        averaged(splits[0], 0.8, seeds=1),
        scratch(budget, 0.8, seeds=1, warmup=1.5),
        scratch(budget, 0.4, seeds=1, name="scratch-short-warm-up"),
        averaged(splits[0], 1.6, seeds=1),
        scratch(budget, 1.6, seeds=1, warmup=1.5),
    )
    best = _BEST.get((width, budget), ())
    return Study(
        f"length-w{width}-e{budget}",
        f"CIFAR-10, 50,000 training images, ResNet-8 of width {width}, four sub-networks of width "
        f"{width // 4}, for the operations of {budget} epochs from scratch",
        {"dataset": "cifar10", "train_size": 50_000, "width": width},
        tuple(arm._replace(seeds=None) if arm.name in best else arm for arm in arms),
    )


# Epochs of the sub-networks and of fine-tuning, the likeliest first.
_SPLITS = {
    4: ((4, 3), (2, 3), (8, 2)),
    8: ((4, 7), (8, 6), (12, 5)),
    16: ((8, 14), (16, 12), (4, 15)),
    32: ((16, 28), (32, 24), (4, 31)),
}
# The best arm of each side on seed 0.
_BEST = {
    (32, 4): ("scratch-4-rate-0.8", "averaged-4+3-rate-0.8"),
    (32, 8): ("scratch-short-warm-up-8-rate-0.4", "averaged-8+6-rate-0.4"),
}
STUDIES = tuple(
    _at_length(width, budget)
    for width, budgets in ((32, (4, 8, 16, 32)), (64, (4, 8, 16)))
    for budget in budgets
)
