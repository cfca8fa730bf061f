"""Arms, the ways to train that a study compares, and the settings of their trials."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.settings.flags import Settings
from experiments.settings.naming import changed


class Arm(NamedTuple):
    """One way to train.

    Attributes:
      name: in the tables and records, and of the trials' folders.
      flags: the settings in which it differs from its study's.
      seeds: the largest number of seeds; None for all that are asked for. Arms that only tune a
        setting have 1.
    """

    name: str
    flags: Mapping[str, Any]
    seeds: int | None = None

    @property
    def is_scratch(self) -> bool:
        """True if the arm trains the global network from scratch."""
        return self.flags["baseline_epochs"] > 0


class Study(NamedTuple):
    """Arms that are compared on one network and one data set.

    Attributes:
      name: on the command line, of the file of records, and of the place in the document.
      title: the network and the data, for readers.
      flags: the settings in which all arms differ from the quick preset.
    """

    name: str
    title: str
    flags: Mapping[str, Any]
    arms: tuple[Arm, ...]


def scratch(
    epochs: int,
    rate: float,
    seeds: int | None = None,
    name: str = "scratch",
    warmup: float = 0.5,
    **more: Any,
) -> Arm:
    """Return the arm that trains the global network from scratch: warm-up, one cosine to zero."""
    flags = {"subnet_epochs": 0, "finetune_epochs": 0, "baseline_epochs": epochs}
    flags |= {"learning_rate": rate, "baseline_warmup_epochs": warmup, "average": 0.0}
    return Arm(f"{name}-{epochs}-rate-{rate}", flags | more, seeds)


def averaged(
    epochs: tuple[int, int],
    rate: float,
    seeds: int | None = None,
    name: str = "averaged",
    **more: Any,
) -> Arm:
    """Return the arm of the quick preset's recipe: one schedule and averaged weights.

    The sub-networks keep a constant rate and are composed before they are annealed. Fine-tuning
    continues with that rate and their momenta, and anneals once. `epochs` are the sub-networks' and
    fine-tuning's; `more` are settings in which the arm departs from the recipe.
    """
    flags = {"subnet_epochs": epochs[0], "finetune_epochs": epochs[1], "baseline_epochs": 0}
    flags |= {"learning_rate": rate}
    return Arm(f"{name}-{epochs[0]}+{epochs[1]}-rate-{rate}", flags | more, seeds)


def with_flags(flags: Mapping[str, Any]) -> Settings:
    """Return the quick preset with other values of the named settings.

    >>> with_flags({"width": 64, "seed": 1}).network.width
    64
    """
    return changed(Settings(), flags)
