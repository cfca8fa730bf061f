"""Name what is on images, with the networks of a run: `python -m experiments.predict`."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from experiments.extras import BAD_INPUT, needed

PROGRAM = "python -m experiments.predict"

with needed(PROGRAM, "experiments"):
    import numpy as np
    import tyro
    from jaxtyping import Float, UInt8
    from PIL import Image, ImageOps, UnidentifiedImageError

    import dcjax
    from experiments.data.pixels import check_depth
    from experiments.run.workdir import without_model
    from experiments.settings import help


IMAGES = tyro.conf.arg(metavar="IMAGES", help_behavior_hint="(one or more)")


@dataclasses.dataclass(frozen=True)
class Options:
    """Name what is on images, with the networks of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """The workdir of a finished run."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, IMAGES]
    """Image files, of any size; they are resized to the run's, and what sticks out is cut off."""
    which: Annotated[
        Literal["finetuned", "composed", "baseline"], tyro.conf.arg(metavar="NAME")
    ] = "finetuned"
    """The network that is asked: finetuned, composed or baseline."""
    top: int = 3
    """Classes to print, the most probable first."""


def main(program: str = PROGRAM, args: Sequence[str] | None = None) -> int:
    """Print the classes of images, and what each sub-network says.

    Returns:
      The exit code: 0 done; 2 the run or an image cannot be read (one line on stderr).
    """
    folder = None
    try:
        options: Options = help.read(Options, program, args)
        folder = options.run
        if options.top < 1:
            raise ValueError(f"--top {options.top}: expected an integer of 1 or more")
        if not options.images:
            raise ValueError("no images given: name one or more files after the workdir")
        model = dcjax.load_run(options.run)
        good, failed = read(options.images, (model.shape[0], model.shape[1]))
        for problem in failed:
            print(f"{program}: error: {problem}", file=sys.stderr)
        if good:
            images = np.stack([*good.values()])
            all_of = model.predict(images, options.which), model.predict(images, "subnets")
            for path, line in zip(good, lines(*all_of, model.classes, options.top), strict=True):
                print(f"{path}: {line}")
    except (ValueError, OSError) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        if folder and (lost := without_model(folder)):
            print(f"{program}: {lost}", file=sys.stderr)
        return BAD_INPUT
    return BAD_INPUT if failed else 0


def read(
    paths: Sequence[Path], size: tuple[int, int]
) -> tuple[dict[Path, UInt8[np.ndarray, "H W 3"]], list[str]]:
    """Return the images that can be read, of this height and width, and a line for each other."""
    good, failed = {}, []
    for path in paths:
        try:
            good[path] = pixels(path, size)
        except UnidentifiedImageError:
            failed.append(f"{path}: Pillow does not know its format")
        except Exception as error:  # Pillow's decoders raise many types for damaged files
            failed.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    return good, failed


def pixels(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Return an image as RGB, upright, resized and cut to a height and a width.

    What is transparent becomes white.
    """
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode} has more than 8 bits a channel; convert it")
        check_depth(image, path)
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            layer = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        rgb = upright.convert("RGB")
        return np.asarray(ImageOps.fit(rgb, (size[1], size[0]), Image.Resampling.BICUBIC))


def lines(
    probabilities: Float[np.ndarray, "N C"],
    subnets: Float[np.ndarray, "K N C"],
    classes: Sequence[str] | None,
    top: int,
) -> Iterator[str]:
    """Yield what is said of each image: the classes, and the first class of each sub-network."""
    names = classes or [*map(str, range(probabilities.shape[-1]))]

    def named(of: Float[np.ndarray, " C"], count: int) -> str:
        best = np.argsort(-of, kind="stable")[:count]
        return ", ".join(f"{names[c]} {100 * of[c]:.1f} %" for c in best)

    for i, of in enumerate(probabilities):
        each = " | ".join(named(subnet[i], 1) for subnet in subnets)
        yield f"{named(of, top)}\n    sub-networks: {each}"


if __name__ == "__main__":
    sys.exit(main())
