"""Image files to arrays, with Pillow."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def pixels(source: Path | io.BytesIO) -> UInt8[np.ndarray, "H W 3"]:
    """An image file's pixels as RGB, 8 bits a channel; grey is tiled, transparency dropped.

    Raises:
      ValueError: if the image has more than 8 bits a channel (Pillow would clip them silently).
      Exception: whatever Pillow's many decoders raise on a damaged or unfinished file.
    """
    with Image.open(source) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raise ValueError(f"8 bits a channel are expected, this image's mode is {image.mode!r}")
        return np.asarray(image.convert("RGB"))
