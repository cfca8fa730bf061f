"""Layouts to and from plain JSON values, which are checked before they are used."""

from typing import Any

from dcjax._layout.layout import Layout, LeafLayout, Path
from dcjax._layout.order import Order, Run

Json = Any


def layout_to_json(layout: Layout) -> Json:
    """Return the layout as dicts, lists, strings, integers and booleans."""

    def axis(order: Order) -> Json:
        runs = [[int(run.units), bool(run.shared)] for run in order.runs]
        return {"repeat": int(order.repeat), "runs": runs}

    leaves = [
        {"path": list(path), "axes": list(map(axis, leaf.axes))}
        | {"head": bool(leaf.head), "used": bool(leaf.used)}
        for path, leaf in layout.leaves
    ]
    return {"subnets": int(layout.subnets), "leaves": leaves}


def layout_from_json(value: Json) -> Layout:
    """Return the layout that `layout_to_json` wrote; a `ValueError` for any other value."""
    match value:
        case {"subnets": subnets, "leaves": list(leaves), **rest} if not rest:
            layout = Layout(_size(subnets), tuple(map(_leaf_from_json, leaves)))
            if subnets and len(layout.by_path) == len(leaves):
                return layout
    raise ValueError("a layout has at least one sub-network, and a list that has each leaf once")


def _leaf_from_json(value: Json) -> tuple[Path, LeafLayout]:
    match value:
        case {
            "path": list(path),
            "axes": list(axes),
            "head": bool(head),
            "used": bool(used),
            **rest,
        }:
            if not rest and all(isinstance(key, str) for key in path):
                return tuple(path), LeafLayout(tuple(map(_order_from_json, axes)), head, used)
    raise ValueError("a leaf of a layout has a path of strings, axes, head and used")


def _order_from_json(value: Json) -> Order:
    match value:
        case {"repeat": repeat, "runs": list(listed), **rest} if not rest:
            runs = tuple(map(_run_from_json, listed))
            # Orders are written in their normal form. Others must not reach `Order`, which
            # multiplies runs with shared ends by `repeat`: a forged number would fill the memory.
            ends_merge = bool(runs) and runs[0].shared and runs[-1].shared and repeat != 1
            order = Order((), 0) if ends_merge else Order(runs, _size(repeat))
            if (order.runs, order.repeat) == (runs, repeat):
                return order
    raise ValueError("an axis of a layout has repeat and runs in their normal form")


def _run_from_json(value: Json) -> Run:
    match value:
        case [units, bool(shared)] if _size(units):
            return Run(units, shared)
    raise ValueError("a run of a layout is [units ≥ 1, shared]")


def _size(value: Json) -> int:
    """Return an integer that may be the length of an axis; bools are not integers here."""
    if type(value) is int and 0 <= value < 2**63:
        return value
    raise ValueError(f"the sizes of a layout are integers from 0 to 2⁶³ - 1, got {value!r:.40}")
