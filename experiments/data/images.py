"""Image files to arrays, with Pillow."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def pixels(source: Path | io.BytesIO) -> UInt8[np.ndarray, "H W 3"]:
    """Return an image file's pixels as RGB, 8 bits a channel; grey is tiled, transparency dropped.

    Raises:
      ValueError: the image has more than 8 bits a channel (Pillow would clip them silently).
      Exception: of any type, from Pillow's decoders, for a damaged file.
    """
    with Image.open(source) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raise ValueError(f"expected 8 bits a channel, got mode {image.mode!r}")
        return np.asarray(image.convert("RGB"))
