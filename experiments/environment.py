"""What a run ran on and with, for its results."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax

from dcjax import training


def versions() -> dict[str, str]:
    """The versions of what figures depend on."""
    packages = ("dcjax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def devices(used: Mapping[str, int]) -> dict[str, Any]:
    """The devices there are, and how many of them each phase used.

    Args:
      used: the number of devices of each phase.
    """
    here = jax.devices()
    return {
        "platform": here[0].platform,
        "kind": here[0].device_kind,
        "count": len(here),
        "physical": training.physical_devices(here),
        "used": dict(used),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a checkout
