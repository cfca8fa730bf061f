"""Networks and optimisers of one's own, by name: `MODULE:CLASS` below the current directory."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

BUILT_IN = ("resnet", "cnn")
"""The networks that need no module."""


class OwnError(Exception):
    """A network or optimiser of one's own cannot be used; the message says why and what to do."""


def network(spec: str, classes: int, **offered: Any) -> Any:
    """Make a network from `MODULE:CLASS`.

    Args:
      spec: a Linen module's class, or a function that returns one. It takes `num_classes`, and is
        called with what it takes of the other arguments too.
      classes: the number of classes.
      offered: such as `width` and `depth`.

    Raises:
      OwnError: it cannot be imported or made, or its call has no `train`.
    """
    from flax import linen as nn

    make = _imported("--model", spec)
    takes = inspect.signature(make).parameters
    if "num_classes" not in takes:
        raise OwnError(
            f"--model {spec} takes {', '.join(takes) or 'nothing'}; expected num_classes, and "
            "width if the network has one. A function that returns the network may take them"
        )
    given = {name: value for name, value in offered.items() if name in takes}
    try:
        made = make(num_classes=classes, **given)
    except Exception as error:  # the user's code
        raise OwnError(f"--model {spec} cannot be made: {_said(error)}") from error
    if not isinstance(made, nn.Module):
        raise OwnError(f"--model {spec} is a {type(made).__name__}, expected a Flax Linen module")
    if "train" not in inspect.signature(type(made).__call__).parameters:
        raise OwnError(
            f"--model {spec}: its call has no argument train; give it `train: bool = False`, which "
            "is True in training"
        )
    return made


def check(spec: str, made: Any, subnets: int, samples: Any, x: Any) -> None:
    """Raise an `OwnError` if K sub-networks cannot be composed into the network.

    Args:
      spec: its name, for the message.
      made: the network.
      subnets: K.
      samples: what each sub-network sees.
      x: a batch of images.
    """
    import dcjax

    try:
        layout = dcjax.layout(made, subnets, x, samples=samples)
    except Exception as error:  # the user's code, too
        raise OwnError(f"--model {spec}: {error}") from error
    if subnets > 1 and not layout.has_head:
        raise OwnError(
            f"--model {spec} has no head: no leaf merges the sub-networks, so its output grows "
            "with the width. End it with nn.Dense(num_classes); where dcjax.narrowable makes its "
            "sub-networks, name that layer in keep"
        )


def optimizer(spec: str, rate: Any, weight_decay: float) -> Any:
    """Make an optimiser from optax's name or `MODULE:FUNCTION`.

    Args:
      spec: its function takes the learning rate, a schedule, and `weight_decay` if it has any.
      rate: the schedule.
      weight_decay: its strength.

    Raises:
      OwnError: it cannot be found or made.
    """
    import optax

    make = _imported("--optimizer", spec if ":" in spec else f"optax:{spec}")
    try:
        decays = "weight_decay" in inspect.signature(make).parameters
        made = make(rate, **({"weight_decay": weight_decay} if decays else {}))
    except Exception as error:  # optax's or the user's code
        raise OwnError(f"--optimizer {spec} cannot be made: {_said(error)}") from error
    if not isinstance(made, optax.GradientTransformation):
        raise OwnError(
            f"--optimizer {spec} gives a {type(made).__name__}, expected an optimiser of optax, "
            "such as adamw, or MODULE:FUNCTION that makes one from a learning rate"
        )
    return made


def _imported(flag: str, spec: str) -> Callable[..., Any]:
    """Return what `MODULE:NAME` names."""
    module, _, name = spec.partition(":")
    if (here := os.getcwd()) not in sys.path:  # the command `dcjax` does not look there
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's code
        raise OwnError(f"{flag} {spec} cannot be imported: {_said(error)}") from error
    if not callable(found):
        raise OwnError(f"{flag} {spec} is a {type(found).__name__}, expected a class or function")
    return found


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
