"""Timing several ways of doing the same work, in turns."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Ways = Mapping[str, Callable[[], Any]]
"""Ways of doing the same work, by name: functions that return when it is done."""


class Timing(NamedTuple):
    """The median, the fastest and the slowest of repeated runs, in seconds."""

    median: float
    fastest: float
    slowest: float


def in_turns(ways: Ways, runs: int) -> dict[str, Timing]:
    """Time every way `runs` times, in turns, so that a busy machine slows all of them alike.

    Each way is run once before, for compilation and first touches of memory.

    >>> sorted(in_turns({"one": int, "other": str}, runs=3))
    ['one', 'other']
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(runs):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: Timing(float(np.median(s)), min(s), max(s)) for name, s in seconds.items()}


def milliseconds(timing: Mapping[str, float]) -> str:
    """Return median and range in milliseconds, with more digits where they are few.

    >>> milliseconds({"median": 0.0201, "fastest": 0.019, "slowest": 0.025})
    '20 (19–25)'
    """
    places = 0 if timing["median"] >= 0.02 else 1 if timing["median"] >= 0.005 else 2
    median, fastest, slowest = (
        f"{1e3 * timing[key]:.{places}f}" for key in ("median", "fastest", "slowest")
    )
    return f"{median} ({fastest}–{slowest})"
