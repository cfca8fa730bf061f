"""Layouts, stacked variables and reports of `verify` as HTML, for notebooks."""

from collections.abc import Iterator, Sequence
from html import escape

from dcjax._layout.order import Order

_SIDE = 44
_SHARED = "#8888"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already; all but the first are right-aligned."""

    def line(tag: str, cells: Sequence[str]) -> str:
        style = ' style="padding:2px 8px;text-align:{}"'.format
        sides = ["left", *["right"] * (len(cells) - 1)]
        each = (f"<{tag}{style(s)}>{c}</{tag}>" for s, c in zip(sides, cells, strict=True))
        return f"<tr>{''.join(each)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"


def layout_html(
    leaves: Sequence[tuple[str, str, tuple[Order, ...]]], subnets: int, note: str = ""
) -> str:
    """Return a layout as a table, with a picture of every leaf's blocks.

    Args:
      leaves: the path, the kind and the axes of each.
      subnets: K.
      note: a line below the table.

    >>> from dcjax._layout.order import Run
    >>> channels = Order((Run(2),))
    >>> text = layout_html([("w", "block", (channels, channels))], 3)
    >>> text.count("<rect"), "(2, 2)" in text, "(6, 6)" in text
    (4, True, True)
    """
    rows = []
    for path, kind, axes in leaves:
        narrow, wide = (order.narrow for order in axes), (order.width(subnets) for order in axes)
        orders = " , ".join(map(str, axes)) or "scalar"
        shapes = str(tuple(narrow)), str(tuple(wide))
        rows.append([escape(path), *shapes, kind, orders, _blocks(axes, subnets)])
    colours = " ".join(
        f'<span style="color:{_colour(k, subnets)}">■</span>&nbsp;{k}' for k in range(subnets)
    )
    legend = f'sub-networks {colours} <span style="color:{_SHARED}">■</span>&nbsp;shared'
    head = ["leaf", "sub-network", "global", "kind", f"axes (K = {subnets})", "blocks"]
    return f"<div>{legend}{table(head, rows)}{escape(note)}</div>"


def _blocks(axes: tuple[Order, ...], subnets: int) -> str:
    """Draw the blocks along the two axes that matter, or along one: an SVG element."""
    split = [axis for axis, order in enumerate(axes) if not order.is_shared]
    last = len(axes) - 1
    if not axes:
        return ""
    if len(split) > 1:
        shown = [axes[split[0]], axes[split[-1]]]
    elif split and last:
        shown = [axes[split[0] if split[0] < last else last - 1], axes[last]]
    else:
        shown = [axes[last]]
    columns = list(_segments(shown[-1], subnets))
    height = _SIDE if len(shown) > 1 else _SIDE // 4
    rows = list(_segments(shown[0], subnets)) if len(shown) > 1 else [(None, 0.0, 1.0)]
    drawn = [f'<rect width="{_SIDE}" height="{height}" fill="#8882"/>']
    for row, top, tall in rows:
        for column, left, wide in columns:
            if row is not None and column is not None and row != column:
                continue  # off-diagonal: zero after composition
            owner = column if row is None else row
            colour = _SHARED if owner is None else _colour(owner, subnets)
            drawn.append(
                f'<rect x="{_SIDE * left:.1f}" y="{height * top:.1f}" '
                f'width="{_SIDE * wide:.1f}" height="{height * tall:.1f}" fill="{colour}"/>'
            )
    return f'<svg width="{_SIDE}" height="{height}">{"".join(drawn)}</svg>'


def _segments(order: Order, subnets: int) -> Iterator[tuple[int | None, float, float]]:
    """Yield the owners of one period of an axis (None: shared), with start and width in [0, 1]."""
    whole = sum(run.width(subnets) for run in order.runs) or 1
    for run, _, start in order.spans(subnets):
        if run.shared:
            yield None, start / whole, run.units / whole
            continue
        for k in range(subnets):
            yield k, (start + k * run.units) / whole, run.units / whole


def _colour(k: int, subnets: int) -> str:
    return f"hsl({210 + 360 * k // subnets} 60% 52%)"
