"""Jaxprs inside of equations, and the lines they come from, on all supported versions of JAX."""

import pathlib
import sysconfig
from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex

# Primitives that only run the jaxpr they hold: jit, remat, functions with custom derivatives.
CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")
CALLS += ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")

# Primitives with rules that walk the jaxprs they hold.
PROGRAMS = (*CALLS, "scan", "while", "cond")


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


def needed_arrays(jaxpr: jex.Jaxpr, needed: Sequence[bool] | None = None) -> set[Any]:
    """Return the variables on which the `needed` results (default: all) depend."""
    results = zip(jaxpr.outvars, needed or [True] * len(jaxpr.outvars), strict=True)
    arrays = {var for var, is_needed in results if is_needed and not isinstance(var, jex.Literal)}
    for eqn in reversed(jaxpr.eqns):
        outputs = [var in arrays for var in eqn.outvars]
        if not (any(outputs) or eqn.effects):
            continue
        operands = eqn.invars
        if eqn.primitive.name in CALLS:
            inner = inner_program(eqn.params).jaxpr
            within = needed_arrays(inner, outputs)
            operands = [v for v, own in zip(operands, inner.invars, strict=True) if own in within]
        arrays.update(var for var in operands if not isinstance(var, jex.Literal))
    return arrays


# Frames in these packages say less than the line of the user's code that called them.
_LIBRARIES = ("jax", "jaxlib", "flax", "haiku", "equinox", "jaxtyping", "beartype")
_STANDARD = sysconfig.get_paths()["stdlib"]
_TRACING = str(pathlib.Path(__file__).parent)


def located(path: str, sources: Sequence[Any]) -> str:
    """Return a module path with the innermost line of the user's code, as `file:line`.

    `sources` are those of nested equations, the outermost first.
    """
    lines = (line for source in reversed(sources) if (line := _line(source)))
    return ", ".join(part for part in (path, next(lines, "")) if part)


def _line(source: Any) -> str:
    for frame in source.traceback.frames if source and source.traceback else ():
        if frame.function_name.startswith("trace_to_jaxpr"):
            break  # JAX traces a function once: the frames above are those of its first call
        if not _is_library(frame.file_name):
            return f"{'/'.join(pathlib.PurePath(frame.file_name).parts[-2:])}:{frame.line_num}"
    return ""


def _is_library(file: str) -> bool:
    packages, installed = file.rpartition("site-packages")[::2]
    if packages:
        return installed[1:].startswith(tuple(f"{name}{installed[0]}" for name in _LIBRARIES))
    return file.startswith((_STANDARD, _TRACING, "<frozen"))
