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
        return _paragraph([self])


class NotSeparableError(ValueError):
    """The network cannot be composed exactly; lists every operation that stands in the way."""

    __module__ = "dcjax"  # the public place, which tracebacks should show

    def __init__(self, violations: Sequence[Violation]):
        self.violations = tuple(violations)
        alike: dict[tuple[str, ...], list[Violation]] = {}
        for violation in violations:  # twenty layer norms are one paragraph
            alike.setdefault(violation[1:], []).append(violation)
        lines = [f"  {i}. {_paragraph(group)}" for i, group in enumerate(alike.values(), 1)]
        super().__init__(
            "this network cannot be composed exactly from narrow sub-networks:\n" + "\n".join(lines)
        )


def _paragraph(alike: Sequence[Violation]) -> str:
    """Describe violations that differ in their paths only."""
    paths = "; ".join(violation.path or "the top level" for violation in alike)
    _, operation, problem, remedy = alike[0]
    return f"{paths} ({operation}): {problem}.\n    Remedy: {remedy}."


class Inseparable(Exception):
    """Raised by a rule with (problem, remedy); the walk notes a `Violation` and continues."""

    __module__ = "dcjax"
