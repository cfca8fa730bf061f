"""A layout as plain JSON values, and back: parsed values are checked before they are used."""

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
        {
            "path": list(path),
            "axes": list(map(axis, leaf.axes)),
            "head": bool(leaf.head),
            "used": bool(leaf.used),
        }
        for path, leaf in layout.leaves
    ]
    return {"subnets": int(layout.subnets), "leaves": leaves}


def layout_from_json(value: Json) -> Layout:
    """Return the layout that `layout_to_json` wrote; a `ValueError` for any other value."""
    subnets, leaves = _fields(value, "a layout", subnets=int, leaves=list)
    layout = Layout(subnets, tuple(map(_leaf_from_json, leaves)))
    if not subnets or len(layout.by_path) != len(layout.leaves):
        raise ValueError("a layout is for at least one sub-network, and names no leaf twice")
    return layout


def _leaf_from_json(value: Json) -> tuple[Path, LeafLayout]:
    kinds = {"path": list, "axes": list, "head": bool, "used": bool}
    path, axes, head, used = _fields(value, "a leaf of a layout", **kinds)
    if not all(isinstance(key, str) for key in path):
        raise ValueError("the path of a leaf of a layout is a list of strings")
    return tuple(path), LeafLayout(tuple(map(_order_from_json, axes)), head, used)


def _order_from_json(value: Json) -> Order:
    repeat, listed = _fields(value, "an axis of a layout", repeat=int, runs=list)
    runs = tuple(map(_run_from_json, listed))
    # Orders are written in their normal form. Others must not reach `Order`, which multiplies runs
    # with shared ends by `repeat`: a forged number would fill the memory.
    ends_merge = bool(runs) and runs[0].shared and runs[-1].shared and repeat != 1
    order = Order((), 0) if ends_merge else Order(runs, repeat)
    if (order.runs, order.repeat) != (runs, repeat):
        raise ValueError(f"an axis of the layout is not in normal form: {len(runs)} runs")
    return order


def _run_from_json(value: Json) -> Run:
    match value:
        case [units, bool(shared)] if _is(units, int) and units:
            return Run(units, shared)
    raise ValueError("a run of a layout is [units ≥ 1, shared], an integer and a boolean")


def _fields(value: Json, what: str, **kinds: type) -> list[Any]:
    """Return the values of a dict that has exactly these keys, each of its type."""
    has_keys = isinstance(value, dict) and value.keys() == kinds.keys()
    if not has_keys or not all(_is(value[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"{what} is {', '.join(f'{n}: {k.__name__}' for n, k in kinds.items())}")
    return [value[name] for name in kinds]


def _is(value: Json, kind: type) -> bool:
    """Return whether a value has a type; integers must also be possible lengths of an axis."""
    return type(value) is kind and (kind is not int or 0 <= value < 2**63)
