"""A layout as plain JSON values and back; what comes back is checked before it is used."""

from typing import Any

from dcjax._layout.layout import Layout, LeafLayout
from dcjax._layout.order import Order, Run

Json = Any


def layout_to_json(layout: Layout) -> Json:
    """The layout as dicts, lists, strings, integers and booleans."""
    leaves = [
        {
            "path": list(path),
            "axes": [_order_to_json(order) for order in leaf.axes],
            "head": bool(leaf.head),
            "used": bool(leaf.used),
        }
        for path, leaf in layout.leaves
    ]
    return {"subnets": int(layout.subnets), "leaves": leaves}


def layout_from_json(value: Json) -> Layout:
    """The layout that `layout_to_json` wrote; a `ValueError` for any other value."""
    match value:
        case {"subnets": subnets, "leaves": list(leaves), **rest} if not rest and _is_count(
            subnets, least=1
        ):
            layout = Layout(subnets, tuple(_leaf_from_json(leaf) for leaf in leaves))
        case _:
            raise ValueError('a layout is {"subnets": K ≥ 1, "leaves": […]}')
    if len(layout.by_path) != len(layout.leaves):
        raise ValueError("the layout names a leaf twice")
    return layout


def _order_to_json(order: Order) -> Json:
    runs = [[int(run.units), bool(run.shared)] for run in order.runs]
    return {"repeat": int(order.repeat), "runs": runs}


def _leaf_from_json(value: Json) -> tuple[tuple[str, ...], LeafLayout]:
    match value:
        case {
            "path": list(path),
            "axes": list(axes),
            "head": bool(head),
            "used": bool(used),
            **rest,
        } if not rest and all(isinstance(key, str) for key in path):
            orders = tuple(_order_from_json(axis) for axis in axes)
            return tuple(path), LeafLayout(orders, head=head, used=used)
    raise ValueError('a leaf of a layout is {"path": […], "axes": […], "head": …, "used": …}')


def _order_from_json(value: Json) -> Order:
    match value:
        case {"repeat": repeat, "runs": list(listed), **rest} if not rest and _is_count(repeat):
            runs = tuple(_run_from_json(run) for run in listed)
        case _:
            raise ValueError('an axis of a layout is {"repeat": n, "runs": [[units, shared], …]}')
    # Orders are written in their normal form. `Order` would expand this one by its repeat, which
    # may be any number.
    ends_merge = bool(runs) and runs[0].shared and runs[-1].shared and repeat != 1
    order = Order((), 0) if ends_merge else Order(runs, repeat)
    if (order.runs, order.repeat) != (runs, repeat):
        raise ValueError(f"an axis of the layout is not in normal form: {len(runs)} runs")
    return order


def _run_from_json(value: Json) -> Run:
    match value:
        case [units, bool(shared)] if _is_count(units, least=1):
            return Run(units, shared)
    raise ValueError("a run of a layout is [units ≥ 1, whether they are shared]")


def _is_count(value: Json, least: int = 0) -> bool:
    """Whether it is an integer (True is none) of that size at least, which any array could have."""
    return type(value) is int and least <= value < 2**63
