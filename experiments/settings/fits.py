"""Which numbers of sub-networks each way to decompose samples fits, known without starting JAX.

The library says the same when it makes them; here it is said before anything has been loaded. A
test holds the two together.
"""

import math
from collections.abc import Callable
from typing import NamedTuple


class Image(NamedTuple):
    """The size of an image in pixels; three colours."""

    height: int = 32
    width: int = 32

    def __str__(self) -> str:
        return f"{self.height}×{self.width}"


def _always(subnets: int, image: Image) -> bool:
    return True


def _channels(subnets: int, image: Image) -> bool:
    return subnets == 1 or subnets % 3 == 0


def _grid(subnets: int, image: Image) -> bool:
    """Whether the most square grid of K cells divides the image."""
    rows, columns = _most_square(subnets)
    return image.height % rows == 0 and image.width % columns == 0


def _bands(subnets: int, image: Image) -> bool:
    """Whether K is a number of Haar bands with known deviations, and so many fit the image."""
    return subnets in (1, 4, 16) and _grid(subnets, image)


SAMPLES: dict[str, Callable[[int, Image], bool]] = {
    "replicate": _always,
    "channels": _channels,
    "tiles": _grid,
    "phases": _grid,
    "bands": _bands,
}


def misfit(samples: str, subnets: int, image: Image) -> str | None:
    """What is wrong with so many sub-networks for these images, or None.

    >>> print(misfit("bands", 3, Image()))
    --samples bands does not fit --subnets 3 and images of 32×32; up to 64 it fits 1, 4, 16
    """
    fit = SAMPLES[samples]
    if fit(subnets, image):
        return None
    others = ", ".join(str(k) for k in range(1, 65) if fit(k, image))
    return (
        f"--samples {samples} does not fit --subnets {subnets} and images of {image}; "
        f"up to 64 it fits {others}"
    )


def view(samples: str, subnets: int, image: Image) -> Image:
    """The size of what each sub-network sees, where that number of them fits.

    >>> print(view("phases", 8, Image()))
    16×8
    """
    if samples in ("replicate", "channels"):
        return image
    rows, columns = _most_square(subnets)
    return Image(image.height // rows, image.width // columns)


def _most_square(subnets: int) -> tuple[int, int]:
    """The grid of K cells, rows ≤ columns, as near as can be."""
    rows = max(d for d in range(1, math.isqrt(subnets) + 1) if subnets % d == 0)
    return rows, subnets // rows
