"""Timing several ways of doing the same work, in turns."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Ways = Mapping[str, Callable[[], Any]]
"""Ways of doing the same work, by name: functions that return when it is done."""


class Timing(NamedTuple):
    """Seconds of repeated runs: their median, the fastest and the slowest."""

    median: float
    fastest: float
    slowest: float


def in_turns(ways: Ways, runs: int) -> dict[str, Timing]:
    """Time every way `runs` times, one after another, so that a busy machine slows all alike.

    Each is run once before, for compilation and first touches. A way returns when its work is done.

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
