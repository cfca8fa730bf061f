"""Pictures as RGB of 8 bits a channel: converted without loss, or refused with the reason."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from experiments.data.reading import square

# Pillow only finds these formats, or starts another program to draw them.
_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# The further pictures in these files are previews or layers of the first.
_ONE_PICTURE = {"MPO", "PSD"}
_LOSSLESS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"}

Image.init()
FORMATS = [name for name in Image.ID if name not in _NOT_PICTURES]
"""The formats that are read, in the order in which Pillow tries them."""
SUFFIXES = {end for end, name in Image.registered_extensions().items() if name in [*FORMATS, "MPO"]}
"""The endings of their files, in lower case."""


class Refused(Exception):
    """A picture cannot be had without loss; the message says why."""


def pixels(path: Path, side: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Return the picture in a file as RGB, upright as its EXIF orientation says.

    With a side, the picture is resized until its shorter side is that long, and its middle is cut
    out.

    Grey becomes three equal channels, a palette its colours. Colour profiles are not applied. An
    alpha channel is dropped if it is opaque everywhere: what lies behind a transparent pixel is not
    in the file, so such pictures are refused, and so are those that Pillow would cut to 8 bits or
    convert between colour spaces.

    Raises:
      Refused: the picture would lose something.
      Exception: of any type, from Pillow's decoders, if the file is damaged.
    """
    with Image.open(path, formats=FORMATS) as image:
        mode = image.mode
        if mode not in _LOSSLESS:
            raise Refused(f"its mode {mode} cannot become RGB without loss; convert it to RGB")
        check_depth(image, path)
        if getattr(image, "is_animated", False) and image.format not in _ONE_PICTURE:
            frames = getattr(image, "n_frames", "several")
            raise Refused(f"it has {frames} frames or pages; keep one")
        if side:
            image.draft("RGB", (2 * side, 2 * side))  # JPEG is quicker to decode at its eighths
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            alpha: Any = upright.convert("RGBA").getchannel("A").getextrema()
            if alpha[0] < 255:
                raise Refused(f"mode {mode} with transparent pixels; put it on a background")
        picture = upright.convert("RGB")
        return np.asarray(square(picture, side) if side else picture)


def size(path: Path) -> tuple[int, int]:
    """Return the height and width of the upright picture in a file, without decoding it."""
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (width, height) if turned else (height, width)


def check_depth(image: Any, path: Path) -> None:
    """Raise `Refused` if the file's numbers are not those from 0 to 255 that its mode tells."""
    if _is_deep(image, path):
        raise Refused(f"mode {image.mode} of more than 8 bits a channel; convert it to 8 bits")
    # Pillow opens signed grey as grey, and takes -1 for 255.
    if image.format == "TIFF" and {*image.tag_v2.get(339, (1,))} & {2, 3}:
        raise Refused(f"mode {image.mode} with signed numbers; convert it to 0 to 255")


def _is_deep(image: Any, path: Path) -> bool:
    """Return whether the file has more than 8 bits a channel, though its mode has not.

    Pillow opens RGB of 16 bits as RGB, and cuts it when it decodes.
    """
    if image.format == "JPEG2000":
        return max(_jpeg2000_depths(path)) > 8
    if image.format == "AVIF":
        return _avif_is_deep(path)
    if image.format == "TIFF":
        depths = image.tag_v2.get(258, (1,))
        palette = image.tag_v2.get(320, ()) if image.mode == "P" else ()
        return max(depths) > 8 or any(v % 256 not in (0, v // 256) for v in palette)
    for codec, _, _, args in image.tile[:1]:
        if image.format == "PPM":
            return codec.startswith("ppm") and args[1] > 255  # the largest value
        if codec == "dds_rgb":
            return any(mask.bit_count() > 8 for mask in args[1])
        if re.search(r";16[BLN]|SGI16", f"{codec} {args}"):
            return True
    return getattr(image, "pixel_format", "") == "BC6H"  # of DDS: floating point


def _jpeg2000_depths(path: Path) -> list[int]:
    """Return the bits of each channel, from the codestream's SIZ segment."""
    content = path.read_bytes()
    start = content.index(b"\xff\x4f\xff\x51")
    header = io.BytesIO(content[start + 40 :])
    count = int.from_bytes(header.read(2), "big")
    return [(each & 0x7F) + 1 for each in header.read(3 * count)[::3]]


def _avif_is_deep(path: Path) -> bool:
    """Return the flag high_bitdepth of the AV1 decoder's configuration."""
    content = path.read_bytes()
    return bool(content[content.index(b"av1C") + 6] & 0x40)
