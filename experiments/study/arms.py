"""What is tried: arms, each some settings that are run with several seeds.

Learning rates are tuned on seed 0, from scratch with at least as many trials as in the transfer;
what is quoted is run with all seeds.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.settings.schema import Settings

# What an arm has unless it says otherwise: so that the defaults may follow what the study finds.
PINNED = {
    "subnet_final_rate": 0.0,
    "finetune_rate": 0.05,
    "warmup_epochs": 0.5,
    "finetune_warmup_epochs": 0.5,
    "carry_momentum": False,
    "average": 0.0,
    "head_rate": 1.0,
}
# Measured three times an epoch (of 78 steps), where the time to an accuracy matters most.
FINELY: Mapping[str, Any] = {"evaluate_every": 26}


class Arm(NamedTuple):
    """One way to train, and how many seeds it is run with.

    Attributes:
      name: of its folder and in the tables.
      kind: `"scratch"`, `"transfer"`, or `"widened"` (one sub-network, copied).
      flags: by which its settings differ from the study's.
      seeds: at most so many; None for all that are asked for. 1 is for trials that tune.
    """

    name: str
    kind: str
    flags: Mapping[str, Any]
    seeds: int | None = None


class Study(NamedTuple):
    """Arms that are compared: the same network and data, about the same time.

    Attributes:
      title: for people.
      flags: by which all its settings differ from the quick preset's.
    """

    title: str
    flags: Mapping[str, Any]
    arms: tuple[Arm, ...]


def settings(study: Study, arm: Arm, seed: int) -> Settings:
    """The settings of a trial.

    >>> settings(STUDIES["cifar10"], STUDIES["cifar10"].arms[0], 2).seed
    2
    """
    flags = {**PINNED, **study.flags, **arm.flags, "seed": seed}
    # One warm-up for both sides, where an arm does not say otherwise.
    return with_flags(Settings(), {"baseline_warmup_epochs": flags["warmup_epochs"], **flags})


def with_flags(settings: Settings, flags: Mapping[str, Any]) -> Settings:
    """The settings with some fields replaced, wherever they are.

    >>> with_flags(Settings(), {"width": 64, "seed": 1}).network.width
    64
    """
    own = {field.name for field in dataclasses.fields(settings)}
    changes: dict[str, Any] = {name: value for name, value in flags.items() if name in own}
    rest = {name: value for name, value in flags.items() if name not in own}
    for name in own:
        group = getattr(settings, name)
        if dataclasses.is_dataclass(group) and not isinstance(group, type):
            fields = {field.name for field in dataclasses.fields(group)} & rest.keys()
            if fields:
                values = {field: rest.pop(field) for field in fields}
                changes[name] = dataclasses.replace(group, **values)
    if rest:
        raise ValueError(f"no such settings: {', '.join(sorted(rest))}")
    return dataclasses.replace(settings, **changes)


def scratch(
    epochs: int, rate: float, seeds: int | None = None, name: str = "scratch", **more: Any
) -> Arm:
    """The global network from scratch: warm-up, and one cosine to zero."""
    flags = {"subnet_epochs": 0, "finetune_epochs": 0}
    flags |= {"baseline_epochs": epochs, "learning_rate": rate}
    return Arm(f"{name}-{epochs}-rate-{rate}", "scratch", flags | more, seeds)


def one_schedule(
    name: str, epochs: tuple[int, int], rate: float, seeds: int | None = None, **more: Any
) -> Arm:
    """Sub-networks at a constant rate, composed before they are annealed; annealed once, composed.

    Fine-tuning begins at the rate at which the sub-networks end, with their momenta.
    """
    flags = {
        "subnet_epochs": epochs[0],
        "finetune_epochs": epochs[1],
        "baseline_epochs": 0,
        "learning_rate": rate,
        "subnet_final_rate": rate,
        "finetune_rate": rate,
        "finetune_warmup_epochs": 0.0,
        "carry_momentum": True,
    }
    return Arm(f"{name}-{epochs[0]}+{epochs[1]}-rate-{rate}", "transfer", flags | more, seeds)


def two_schedules(epochs: tuple[int, int], rates: tuple[float, float], **more: Any) -> Arm:
    """Sub-networks annealed; the composed network warmed up again and annealed again."""
    flags = {
        "subnet_epochs": epochs[0],
        "finetune_epochs": epochs[1],
        "baseline_epochs": 0,
        "learning_rate": rates[0],
        "finetune_rate": rates[1],
    }
    name = f"annealed-{epochs[0]}+{epochs[1]}-rates-{rates[0]}-{rates[1]}"
    return Arm(name, "transfer", flags | more, seeds=1)


def averaged(
    epochs: tuple[int, int],
    rate: float,
    seeds: int | None = None,
    name: str = "averaged",
    **more: Any,
) -> Arm:
    """One schedule, with averaged weights: the recipe of the quick preset."""
    return one_schedule(name, epochs, rate, seeds, **{"average": 0.95} | more)


def slow_head(
    epochs: tuple[int, int], rate: float, name: str = "slow-head", subnets: int = 4, **more: Any
) -> Arm:
    """With averages, and the head's rate divided by K."""
    own = {"subnets": subnets, "head_rate": 1 / subnets}
    return averaged(epochs, rate, name=name, **own | more)


def falling(epochs: tuple[int, int], rates: tuple[float, float]) -> Arm:
    """With averages, the sub-networks' rate falling to the one from which fine-tuning goes on."""
    later = {"subnet_final_rate": rates[1], "finetune_rate": rates[1]}
    return averaged(epochs, rates[0], seeds=1, name=f"falling-to-{rates[1]}", **later)


def composed(epochs: int, rate: float, seeds: int | None = None) -> Arm:
    """The sub-networks annealed, with averaged weights, composed and left at that."""
    flags = {"subnet_epochs": epochs, "finetune_epochs": 0, "baseline_epochs": 0}
    flags |= {"learning_rate": rate, "average": 0.95}
    return Arm(f"composed-{epochs}-rate-{rate}", "transfer", flags, seeds)


def at_length(
    width: int, budget: int, splits: tuple[tuple[int, int], ...], rate: float, warmup: float
) -> Study:
    """Training as long as people train: all images, the baseline's epochs the budget.

    Four epochs of four sub-networks take one epoch's operations, so that a split (S, F) costs
    S/4 + F. Each side has four trials: three rates and another warm-up from scratch; three splits
    and another rate in the transfer.

    Args:
      budget: epochs from scratch.
      splits: epochs of the sub-networks and of fine-tuning; none costs more than the budget.
      rate: in the middle of those that are tried.
      warmup: epochs of the baseline's warm-up.
    """
    assert all(narrow / 4 + wide <= budget for narrow, wide in splits)
    return Study(
        f"CIFAR-10, 50,000 training images, ResNet-8 of width {width}, four sub-networks of width "
        f"{width // 4}, for the operations of {budget} epochs from scratch",
        {"dataset": "cifar10", "train_size": 50_000, "width": width},
        (
            scratch(budget, rate, seeds=1, warmup_epochs=warmup),
            *(averaged(split, rate, seeds=1) for split in splits),
            scratch(budget, rate / 2, seeds=1, warmup_epochs=warmup),
            averaged(splits[0], rate * 2, seeds=1),
            scratch(budget, rate * 2, seeds=1, warmup_epochs=warmup),
            scratch(budget, rate, seeds=1, name="scratch-short-warm-up", warmup_epochs=0.5),
        ),
    )


STUDIES = {
    "length-w32-e4": at_length(32, 4, ((4, 3), (2, 3), (8, 2)), rate=0.4, warmup=1.5),
    "length-w32-e8": at_length(32, 8, ((4, 7), (8, 6), (12, 5)), rate=0.4, warmup=1.5),
    "length-w32-e16": at_length(32, 16, ((8, 14), (16, 12), (4, 15)), rate=0.4, warmup=1.5),
    "length-w32-e32": at_length(32, 32, ((16, 28), (32, 24), (4, 31)), rate=0.4, warmup=1.5),
    "length-w64-e4": at_length(64, 4, ((4, 3), (2, 3), (8, 2)), rate=0.4, warmup=1.5),
    "length-w64-e8": at_length(64, 8, ((4, 7), (8, 6), (12, 5)), rate=0.4, warmup=1.5),
    "length-w64-e16": at_length(64, 16, ((8, 14), (16, 12), (4, 15)), rate=0.4, warmup=1.5),
    "cifar10": Study(
        "CIFAR-10, 10,000 training images, ResNet-8 of width 32, four sub-networks of width 8",
        {"dataset": "cifar10"},
        (
            scratch(6, 0.2, seeds=1),
            scratch(6, 0.4),
            scratch(6, 0.8),
            scratch(6, 1.6, seeds=1),
            scratch(6, 0.4, seeds=1, name="scratch-averaged", average=0.95),
            scratch(6, 0.4, seeds=1, name="scratch-longer-warm-up", warmup_epochs=1.5),
            scratch(6, 0.8, name="scratch-longer-warm-up", warmup_epochs=1.5),
            scratch(6, 1.6, seeds=1, name="scratch-longer-warm-up", warmup_epochs=1.5),
            scratch(6, 0.8, seeds=1, name="scratch-warm-up-2.5", warmup_epochs=2.5),
            scratch(
                6,
                0.8,
                seeds=1,
                name="scratch-longer-warm-up-averaged",
                warmup_epochs=1.5,
                average=0.95,
            ),
            scratch(
                6,
                0.8,
                seeds=1,
                name="scratch-longer-warm-up-smoothed",
                warmup_epochs=1.5,
                label_smoothing=0.1,
            ),
            averaged((4, 2), 0.8, name="longer-warm-up", warmup_epochs=1.5),
            averaged((6, 1), 0.8),
            averaged((6, 2), 0.8),
            averaged((8, 2), 0.8),
            scratch(4, 0.4),
            averaged((4, 2), 0.1, seeds=1),
            averaged((4, 2), 0.2, seeds=1),
            averaged((4, 2), 0.4),
            slow_head((4, 2), 0.4),
            averaged((4, 2), 0.8),
            averaged((4, 2), 1.6, seeds=1),
            averaged((4, 1), 0.4, seeds=1),
            averaged((6, 1), 0.4),
            averaged((4, 2), 0.4, name="K2", subnets=2),
            averaged((4, 2), 0.4, name="half-K8", subnets=8, head_rate=0.5),
            falling((4, 2), (0.4, 0.2)),
            falling((6, 1), (0.4, 0.1)),
            averaged((4, 2), 0.2, seeds=1, name="averaged-then-0.4", finetune_rate=0.4),
            averaged((4, 2), 0.4, seeds=1, name="averaged-over-50-steps", average=0.98),
            averaged((4, 2), 0.4, seeds=1, name="averaged-new-momentum", carry_momentum=False),
            one_schedule("one-schedule", (4, 2), 0.4),
            one_schedule("one-schedule", (4, 2), 0.8),
            two_schedules((4, 2), (0.4, 0.2)),
            scratch(6, 0.8, seeds=1, name="scratch-smoothed", label_smoothing=0.1),
            averaged((4, 2), 0.8, seeds=1, name="smoothed", label_smoothing=0.1),
        ),
    ),
    "cifar10-wide": Study(
        "CIFAR-10, 10,000 training images, ResNet-8 of width 64, four sub-networks of width 16",
        {"dataset": "cifar10", "width": 64},
        (
            scratch(6, 0.2, seeds=1),
            scratch(6, 0.4),
            scratch(6, 0.8, seeds=1),
            scratch(6, 0.4, seeds=1, name="scratch-longer-warm-up", warmup_epochs=1.5),
            scratch(6, 0.8, name="scratch-longer-warm-up", warmup_epochs=1.5),
            averaged((6, 1), 0.4),
            averaged((6, 2), 0.4),
            averaged((8, 2), 0.4, **FINELY),
            averaged((6, 1), 0.4, name="longer-warm-up", seeds=1, warmup_epochs=1.5),
            one_schedule("one-schedule", (6, 1), 0.4, seeds=1),
            averaged((6, 1), 0.8, seeds=1),
            slow_head((6, 1), 0.4, name="slow-head-phases", samples="phases", seeds=1),
            scratch(6, 0.4, name="scratch-phases", samples="phases", seeds=1),
            averaged((6, 1), 0.4, name="bands", samples="bands"),
            averaged((4, 2), 0.4, name="bands", samples="bands"),
            slow_head((6, 1), 0.4, name="slow-head-bands", samples="bands", seeds=1),
            slow_head((4, 2), 0.4, name="slow-head-bands", samples="bands", seeds=1),
            scratch(6, 0.4, name="scratch-bands", samples="bands"),
            averaged((4, 2), 0.4),
            averaged((4, 1), 0.4, seeds=1),
            averaged((7, 0), 0.8, seeds=1),
            composed(6, 0.4, seeds=1),
        ),
    ),
    "cifar10-widest": Study(
        "CIFAR-10, 10,000 training images, ResNet-8 of width 128, four sub-networks of width 32, "
        "each of which sees every second row and column",
        {"dataset": "cifar10", "width": 128},
        (
            scratch(6, 0.4, seeds=1, name="scratch-phases", samples="phases"),
            scratch(6, 0.2, name="scratch-phases", samples="phases"),
            scratch(6, 0.1, name="scratch-phases", samples="phases"),
            scratch(6, 0.05, seeds=1, name="scratch-phases", samples="phases"),
            scratch(6, 0.2, name="scratch-longer-warm-up", samples="phases", warmup_epochs=1.5),
            scratch(
                6, 0.4, name="scratch-longer-warm-up", samples="phases", seeds=1, warmup_epochs=1.5
            ),
            averaged((6, 1), 0.8, name="phases", samples="phases", seeds=1),
            averaged((6, 1), 0.4, name="phases", samples="phases"),
            averaged((6, 2), 0.4, name="phases", samples="phases", seeds=1, **FINELY),
            averaged((8, 2), 0.4, name="phases", samples="phases", **FINELY),
            averaged((6, 1), 0.2, name="phases", samples="phases", seeds=1),
            slow_head((6, 1), 0.4, name="slow-head-phases", samples="phases", seeds=1),
        ),
    ),
    "digits": Study(
        "Handwritten digits (340 test images), ResNet-8 of width 32, four sub-networks of width 8 "
        "but where K is said",
        {"dataset": "digits", "train_size": 1400},
        (
            scratch(12, 0.1, seeds=1),
            scratch(12, 0.2),
            averaged((8, 4), 0.2),
            averaged((10, 2), 0.2),
            slow_head((8, 4), 0.2),
            averaged((8, 4), 0.2, name="K2", subnets=2),
            slow_head((8, 4), 0.2, name="slow-head-K2", subnets=2),
            averaged((8, 4), 0.2, name="K8", subnets=8),
            slow_head((8, 4), 0.2, name="slow-head-K8", subnets=8),
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
    "digits-deep": Study(
        "Handwritten digits, ResNet-14 of width 32, four sub-networks of width 8",
        {"dataset": "digits", "train_size": 1400, "depth": 14},
        (scratch(12, 0.2), averaged((8, 4), 0.2)),
    ),
}
