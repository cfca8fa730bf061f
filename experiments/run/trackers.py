"""Trackers of metrics beside `metrics.jsonl`: TensorBoard, Weights & Biases, Trackio.

A tracker is two functions: `log(values, step)` with plain numbers by their names, and `close()`.
Names are `STAGE/QUANTITY`, such as `finetune/accuracy` or `subnets/loss/0`.
"""

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
PROJECT = "dcjax"


class TrackerError(Exception):
    """A tracker cannot be used; the message says why and what to do."""


class Tracker(NamedTuple):
    """Where metrics go, too."""

    log: Callable[[Mapping[str, float], int], object]
    close: Callable[[], object]


def make(name: str, folder: Path, settings: Mapping[str, Any]) -> Tracker:
    """Return a tracker for the run in that folder.

    Raises:
      TrackerError: its package is not installed, or it does not start.
    """
    package = PACKAGES[name]
    try:
        module: Any = importlib.import_module(package)
        if name == "tensorboard":
            writer = module.SummaryWriter(str(folder / "tensorboard"))

            def log(values: Mapping[str, float], step: int) -> None:
                for key, value in values.items():
                    writer.add_scalar(key, value, step)

            return Tracker(log, writer.close)
        # Steps count from 0 in every stage, and these two want one that only grows.
        module.init(project=PROJECT, name=folder.name, config=dict(settings))
        return Tracker(lambda values, step: module.log(dict(values)), module.finish)
    except ModuleNotFoundError:
        raise TrackerError(f"--tracker {name} needs {package}: pip install {package}") from None
    except Exception as error:  # a service that does not answer, a key that is missing
        raise TrackerError(
            f"--tracker {name} does not start: {error}. Without --tracker, metrics.jsonl has "
            "the same figures"
        ) from error


@contextlib.contextmanager
def listening(
    name: str, folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[list[Callable[..., None]]]:
    """Give the listeners of metrics for a tracker (none for `none`), and close it at the end.

    If the tracker fails in training, that is said once, and training goes on without it.

    Raises:
      TrackerError: as `make`.
    """
    if name == "none":
        yield []
        return
    tracker = make(name, folder, settings)
    working = True

    def attempt(action: Callable[[], object]) -> None:
        nonlocal working
        try:
            if working:
                action()
        except Exception as error:
            working = False
            say(f"the tracker failed, training continues without it: {error}")

    def listen(**fields: Any) -> None:
        attempt(lambda: tracker.log(numbers(fields), fields.get("step", 0)))

    try:
        yield [listen]
    finally:
        attempt(tracker.close)


def numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a line of metrics by the names of a tracker.

    >>> numbers({"phase": "subnets", "step": 7, "loss": [0.5, math.nan], "accuracy": None})
    {'subnets/step': 7, 'subnets/loss/0': 0.5}
    """
    found = {}
    for name, value in fields.items():
        for place, each in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(each, (int, float)) and math.isfinite(each):
                end = f"/{place}" if isinstance(value, list) else ""
                found[f"{fields['phase']}/{name}{end}"] = each
    return found
