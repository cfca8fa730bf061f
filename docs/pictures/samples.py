"""Draw the ways to decompose samples as `samples.svg`: `python docs/pictures/samples.py`."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

import dcjax

INK = "#24292f"
SIDE, GAP, PANEL, HEIGHT = 56, 6, 146, 206
COLOURS = {
    "s": (158, 205, 240),  # sky
    "y": (250, 204, 60),  # sun
    "r": (196, 69, 54),  # roof
    "w": (240, 226, 200),  # wall
    "d": (110, 74, 50),  # door
    "b": (70, 110, 160),  # window
    "g": (92, 158, 84),  # grass
}
PICTURE = """
ssssssssssssssss
sssssssssssyyyss
sssssssssssyyyss
sssssrrssssyyyss
ssssrrrrssssssss
sssrrrrrrsssssss
ssrrrrrrrrssssss
srrrrrrrrrrsssss
sswwwwwwwwssssss
sswbbwwddwssssss
sswbbwwddwssgsss
sswwwwwddwsgggss
sswwwwwddwsgggss
gggggggddggggggg
ggggggddgggggggg
gggggddggggggggg
"""
NOTES = {
    "replicate": "the whole image",
    "channels": "some channels",
    "tiles": "a rectangle",
    "phases": "every second pixel",
    "bands": "a Haar sub-band",
}


def svg() -> str:
    """Return the picture: the image, and what the sub-networks see in each way."""
    image = np.array([[COLOURS[cell] for cell in row] for row in PICTURE.split()], np.float32)
    width = PANEL * (len(NOTES) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" role="img" shape-rendering="crispEdges">',
        "<title>An image, and what each of the sub-networks sees of it</title>",
        f'<rect width="{width}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        *_text(PANEL / 2, "image", ""),
        *_pixels(image, (PANEL - 2 * SIDE - GAP) / 2, 44, 2 * SIDE + GAP),
    ]
    for place, (name, note) in enumerate(NOTES.items(), 1):
        left = place * PANEL + (PANEL - 2 * SIDE - GAP) / 2
        parts += _text((place + 0.5) * PANEL, name, note)
        for k, seen in enumerate(_seen(name, image)):
            row, column = divmod(k, 2)
            parts += _pixels(seen, left + column * (SIDE + GAP), 44 + row * (SIDE + GAP), SIDE)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _seen(name: str, image: np.ndarray) -> list[np.ndarray]:
    """Return the sub-networks' images as colours."""
    if name == "channels":
        views = np.asarray(dcjax.samples.channels(3).split(image[None]))[:, 0]
        return [view * np.eye(3)[k] for k, view in enumerate(views)]
    if name == "bands":
        views = dcjax.samples.bands(4, deviations=[2, 1, 1, 1]).split(image[None])
        views = np.asarray(views)[:, 0]
        return [views[0], *(128 + views[1:])]
    return list(np.asarray(dcjax.samples.make(name, 4).split(image[None]))[:, 0])


def _pixels(image: np.ndarray, x: float, y: float, side: float) -> Iterator[str]:
    """Draw an image as rectangles, one for each run of equal pixels in a row."""
    size = side / len(image)
    for row, line in enumerate(np.clip(np.rint(image), 0, 255).astype(int)):
        column = 0
        for colour, run in groupby(line.tolist()):
            width = len(list(run))
            yield (
                f'<rect x="{x + column * size:g}" y="{y + row * size:g}" width="{width * size:g}" '
                f'height="{size:g}" fill="#{bytes(colour).hex()}"/>'
            )
            column += width


def _text(x: float, title: str, note: str) -> Iterator[str]:
    """Write a panel's title and its note."""
    for y, size, weight, text in ((28, 15, "bold", title), (188, 12, "normal", note)):
        yield (
            f'<text x="{x:g}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{INK}" '
            f'text-anchor="middle">{text}</text>'
        )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(svg(), encoding="utf-8")
