"""Evaluation of a jaxpr that also returns the arrays of chosen equations."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.extend.core as jex
from jax import lax
from jaxtyping import Array

from dcjax._tracing.jaxprs import CALLS, inner_program, scan_counts

Place = tuple[int, ...]
Seen = dict[Place, list[Array]]


def evaluate(program: jex.ClosedJaxpr, args: Sequence[Array], places: Collection[Place]) -> Seen:
    """Return the first result of every equation at one of the `places`.

    A place is the index of an equation, preceded by those of the equations it lies within. An
    equation in a `scan` has a result for every round, so each place has a list. Places
    inside of `cond` and `while` are missing in the result.
    """
    seen: Seen = {}
    _run(program, args, frozenset(places), (), seen)
    return seen


def _run(
    program: jex.ClosedJaxpr,
    args: Sequence[Any],
    places: frozenset[Place],
    at: Place,
    seen: Seen,
) -> list[Any]:
    known = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    known.update(zip(program.jaxpr.invars, args, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, jex.Literal) else known[var]

    for i, eqn in enumerate(program.jaxpr.eqns):
        results = _equation(eqn, [read(v) for v in eqn.invars], places, (*at, i), seen)
        known.update(zip(eqn.outvars, results, strict=True))
        if (*at, i) in places:
            seen.setdefault((*at, i), []).append(results[0])
    return [read(var) for var in program.jaxpr.outvars]


def _equation(
    eqn: Any, operands: list[Any], places: frozenset[Place], at: Place, seen: Seen
) -> list[Any]:
    if eqn.primitive.name in CALLS:
        return _run(inner_program(eqn.params), operands, places, at, seen)
    within = any(place[: len(at)] == at != place for place in places)
    if eqn.primitive.name == "scan" and within and eqn.params["length"]:
        return _scan(eqn, operands, places, at, seen)
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(results) if eqn.primitive.multiple_results else [results]


def _scan(
    eqn: Any, operands: list[Any], places: frozenset[Place], at: Place, seen: Seen
) -> list[Any]:
    """Run the rounds one after the other, to see the results of each."""
    consts, carried = scan_counts(eqn.params)
    fixed, carry = operands[:consts], operands[consts : consts + carried]
    sliced = operands[consts + carried :]
    rounds = range(eqn.params["length"])
    stacked = []
    for i in reversed(rounds) if eqn.params["reverse"] else rounds:
        xs = [lax.index_in_dim(x, i, keepdims=False) for x in sliced]
        results = _run(eqn.params["jaxpr"], [*fixed, *carry, *xs], places, at, seen)
        carry = results[:carried]
        stacked.append(results[carried:])
    if eqn.params["reverse"]:
        stacked.reverse()
    ys = [jax.numpy.stack(column) for column in zip(*stacked, strict=True)]
    return [*carry, *ys]
