"""Images decoded into one array, in parallel threads."""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Int, Int32
from PIL import Image, ImageOps

from experiments.data.types import DataError, Images, Notify, Places, Pool

T = TypeVar("T")
CHUNK = 256  # images that wait to be decoded
PATIENCE = 5.0  # seconds between two lines about the progress


def filled(
    items: Iterable[T],
    count: int,
    size: tuple[int, int],
    decode: Callable[[T], Int[np.ndarray, "H W 3"]],
    what: str,
    notify: Notify,
) -> tuple[Images, list[tuple[T, Exception]]]:
    """Decode items into an array, and say every few seconds how far it is.

    Args:
      items: as many as `count`, read while others are decoded.
      size: height and width of every image.
      decode: called in parallel threads; what it raises is collected.
      what: the name of the data, for messages.

    Returns:
      The images, and the items that could not be decoded, with the reasons.

    Raises:
      DataError: the machine does not have the memory.
    """
    images, problems = _room(count, size), []
    waiting, said = iter(items), time.monotonic()

    def put(item: T, image: Images) -> Exception | None:
        try:
            pixels = decode(item)
            if pixels.shape != image.shape:
                raise ValueError(
                    f"its shape is {pixels.shape}, but the first image's {image.shape}"
                )
            image[:] = pixels
        except Exception as error:  # Pillow's decoders raise many types for damaged files
            return error

    with ThreadPoolExecutor() as threads:
        for first in range(0, count, CHUNK):
            chunk = [*itertools.islice(waiting, CHUNK)]
            errors = threads.map(put, chunk, images[first : first + CHUNK])
            problems += [(item, e) for item, e in zip(chunk, errors, strict=True) if e]
            done = first + len(chunk)
            if time.monotonic() - said > PATIENCE and done < count:
                said = time.monotonic()
                notify(f"reading {what}: {done:,} of {count:,} images")
    return images, problems


def square(image: Image.Image, side: int) -> Image.Image:
    """Resize an image until its shorter side fits, and cut out its middle."""
    if image.size == (side, side):
        return image
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def in_memory(images: Images, labels: Int32[np.ndarray, " N"]) -> Pool:
    """Return the pool of images that have been read."""

    def read(places: Places, side: int | None) -> Images:
        chosen = images[places]
        if side is None or chosen.shape[1:3] == (side, side):
            return chosen
        return np.stack([np.asarray(square(Image.fromarray(each), side)) for each in chosen])

    return Pool(labels, lambda places: images.shape[1:3], read)


def _room(count: int, size: tuple[int, int]) -> Images:
    """Return the array for all images, if the machine has the memory for it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shape = (count, *size, 3)
    if math.prod(shape) > memory:
        raise DataError(
            f"{count} images of {size[0]}×{size[1]} take {math.prod(shape) / 2**30:.1f} GiB, and "
            f"this machine has {memory / 2**30:.1f} GiB: give a smaller --image-size, 64 for "
            "example, or a smaller --train-size"
        )
    return np.empty(shape, np.uint8)
