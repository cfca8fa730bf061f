"""Layouts to and from plain JSON values, which are checked before they are used."""

import contextlib
import json
import math
from typing import Any

from dcjax._layout.layout import Layout, LeafLayout
from dcjax._layout.order import Order, Run

Json = Any


def layout_to_json(layout: Layout) -> Json:
    """Return the layout as dicts, lists, strings, integers and booleans."""

    def axis(order: Order) -> Json:
        runs = [[int(run.units), bool(run.shared)] for run in order.runs]
        return {"repeat": int(order.repeat), "runs": runs}

    leaves = [
        {"path": list(map(str, path)), "axes": list(map(axis, leaf.axes))}
        | {"head": bool(leaf.head), "used": bool(leaf.used), "factor": float(leaf.factor)}
        for path, leaf in layout.leaves
    ]
    return {"subnets": int(layout.subnets), "leaves": leaves}


def layout_from_json(value: Json) -> Layout:
    """Return the layout that `layout_to_json` wrote; a `ValueError` for any other value."""
    with contextlib.suppress(LookupError, TypeError, ValueError):
        leaves = {
            tuple(leaf["path"]): LeafLayout(
                tuple(map(_order_from_json, leaf["axes"])),
                leaf["head"],
                leaf["used"],
                leaf["factor"],
            )
            for leaf in value["leaves"]
        }
        layout = Layout(value["subnets"], tuple(leaves.items()))
        # Writing it again must give the same text, in which 1, 1.0 and true differ.
        written, given = (json.dumps(v, sort_keys=True) for v in (layout_to_json(layout), value))
        positive = all(0 < leaf.factor < math.inf for _, leaf in layout.leaves)
        if written == given and layout.subnets >= 1 and positive:
            return layout
    raise ValueError(f"not a layout as dcjax.save writes it: {value!r:.80}")


def _order_from_json(value: Json) -> Order:
    runs, repeat = tuple(Run(*run) for run in value["runs"]), value["repeat"]
    # `Order` multiplies runs with shared ends by `repeat`: a forged number would fill the memory.
    ends_merge = bool(runs) and runs[0].shared and runs[-1].shared and repeat != 1
    if ends_merge or not all(0 <= size < 2**63 for size in (repeat, *(run.units for run in runs))):
        raise ValueError("not an order in its normal form")
    return Order(runs, repeat)
