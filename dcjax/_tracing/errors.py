"""Errors of the tracing: what cannot be composed exactly, where, and what to do about it."""

from collections.abc import Sequence
from typing import NamedTuple

# Remedies, each a function that makes another network of the user's.
GROUPED = "dcjax.grouped(network, K)"
NARROWABLE = "dcjax.narrowable(network, keep=(…))"


class Violation(NamedTuple):
    """An operation that cannot be composed exactly."""

    path: str
    operation: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = self.path or "the top level"
        return f"{where} ({self.operation}): {self.problem}.\n    Remedy: {self.remedy}."


class NotSeparableError(ValueError):
    """The network cannot be composed exactly; lists every operation that stands in the way."""

    __module__ = "dcjax"  # the public place, which tracebacks should show

    def __init__(self, violations: Sequence[Violation]):
        self.violations = tuple(violations)
        lines = "\n".join(f"  {i}. {v}" for i, v in enumerate(violations, 1))
        super().__init__(
            "this network cannot be composed exactly from narrow sub-networks:\n" + lines
        )


class Inseparable(Exception):
    """Raised by a rule with (problem, remedy); the walk notes a `Violation` and continues."""

    __module__ = "dcjax"
