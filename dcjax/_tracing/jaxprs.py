"""Jaxprs inside of equations, on all supported versions of JAX."""

from typing import Any

import jax.extend.core as jex

# Primitives that only run the jaxpr they hold: jit, remat, functions with custom derivatives.
CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")
CALLS += ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


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
