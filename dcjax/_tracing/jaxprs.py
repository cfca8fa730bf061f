"""Helpers for jaxprs: tracing a function, and reading what an equation holds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
from jax.interpreters import partial_eval

from dcjax._checks import array_fault, leaves_of, shown

# Primitives that only run the jaxpr they hold: jit, remat, functions with custom derivatives.
CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
)


def trace_program(function: Callable[..., Any], *args: Any) -> jex.ClosedJaxpr:
    """Trace a function of abstract arrays (`jax.ShapeDtypeStruct`s); none is allocated.

    Raises:
      TypeError: its result is empty, or holds something that is not an array.
    """
    return jax.make_jaxpr(arrays_only(function, "result"))(*args)


def arrays_only(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Wrap a function to raise a `TypeError` where its result is not a tree of arrays, or empty."""

    def checked(*args: Any) -> Any:
        out = function(*args)
        leaves = leaves_of(out, f"network's {what}")
        faults = {path: array_fault(leaf) for path, leaf in leaves.items()}
        wrong = [f"{'/'.join(path)} {fault}".strip() for path, fault in faults.items() if fault]
        if wrong or not leaves:
            got = "\n  ".join(["", *wrong]) if leaves else f" got none ({shown(out)})"
            raise TypeError(f"the network's {what} must be arrays:{got}")
        return out

    return checked


def used_arguments(program: jex.ClosedJaxpr) -> list[bool]:
    """Return for each flat argument whether the results depend on it."""
    jaxpr = program.jaxpr
    return list(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1])


def inner_program(params: dict[str, Any]) -> jex.ClosedJaxpr:
    """Return the jaxpr that an equation of one of the `CALLS` runs."""
    inner = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
    return inner if isinstance(inner, jex.ClosedJaxpr) else jex.ClosedJaxpr(inner, ())


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """Return how many of a scan's operands are constant, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carried, _ = params["ft_in"].unpack()  # jax 0.12 keeps them as a tree of three
    return len(consts), len(carried)
