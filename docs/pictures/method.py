"""Draw the method as `docs/pictures/method.svg`: `python docs/pictures/method.py`."""

from collections.abc import Iterator
from pathlib import Path

COLOURS = ("#3b6fb6", "#d9822b", "#3d9970", "#a05195")
INK, LINE = "#24292f", "#8c959f"
PANEL, HEIGHT = 220, 250
CELL = 30


def svg() -> str:
    """Return the picture: four panels, and the arrows between them."""
    panels = (
        ("1  decompose", "cut the width, keep the depth", list(_layers(gap=0))),
        ("2  train", "side by side, no communication", list(_layers(gap=12))),
        ("3  compose", "block-diagonal kernels, exact", list(_kernel("#ffffff"))),
        ("4  fine-tune", "the zero blocks start to learn", list(_kernel("#c9d1d9"))),
    )
    width = PANEL * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" role="img">',
        "<title>Decompose, train side by side, compose, fine-tune</title>",
        f'<rect width="{width}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
    ]
    for place, (title, note, shapes) in enumerate(panels):
        parts.append(f'<g transform="translate({place * PANEL} 0)">')
        parts.append(_text(PANEL / 2, 32, title, 17, "bold"))
        parts.append(_text(PANEL / 2, 232, note, 12.5))
        parts += shapes
        if place:
            parts.append(
                f'<path d="M-14 128 h22 m-7 -6 l7 6 l-7 6" fill="none" stroke="{LINE}" '
                'stroke-width="2"/>'
            )
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _layers(gap: int) -> Iterator[str]:
    """Draw four sub-networks of three layers, with a gap between neighbours."""
    column = CELL - gap / 2
    left = (PANEL - 4 * column - 3 * gap) / 2
    for k, colour in enumerate(COLOURS):
        x = left + k * (column + gap)
        for layer in range(3):
            yield _box(x, 62 + layer * 50, column, 34, colour)
        if gap:
            for layer in range(2):
                y = 96 + layer * 50
                yield f'<path d="M{x + column / 2:g} {y} v16" stroke="{LINE}" stroke-width="2"/>'
    if not gap:
        for layer in range(2):
            for k in range(4):
                x, y = left + (k + 0.5) * column, 96 + layer * 50
                yield f'<path d="M{x:g} {y} v16" stroke="{LINE}" stroke-width="2"/>'
        for k in range(1, 4):
            x = left + k * column
            yield (
                f'<path d="M{x:g} 52 v154" stroke="{INK}" stroke-width="1.5" '
                'stroke-dasharray="5 4"/>'
            )


def _kernel(between: str) -> Iterator[str]:
    """Draw a layer's kernel: the sub-networks' blocks, and the blocks between them."""
    left = (PANEL - 4 * CELL) / 2
    for row in range(4):
        for column in range(4):
            colour = COLOURS[row] if row == column else between
            yield _box(left + column * CELL, 72 + row * CELL, CELL, CELL, colour)
            if row != column and between == "#ffffff":
                x, y = left + (column + 0.5) * CELL, 72 + (row + 0.66) * CELL
                yield _text(x, y, "0", 13, colour=LINE)


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{colour}" '
        f'stroke="{INK}" stroke-width="0.8"/>'
    )


def _text(
    x: float, y: float, words: str, size: float, weight: str = "normal", colour: str = INK
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="middle">{words}</text>'
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(svg(), encoding="utf-8")
