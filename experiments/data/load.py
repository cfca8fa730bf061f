"""Any data set by its name, and the stand-in where CIFAR-10 cannot be had."""

import difflib
import textwrap
from pathlib import Path

from experiments.data import cifar10 as _cifar10
from experiments.data import digits as _digits
from experiments.data import folder as _folder
from experiments.data.types import DataError, Dataset, Notify

NAMES = ("auto", "cifar10", "digits")
FOLDER = "folder:"


def check_name(name: str) -> str:
    """The name itself, if it is one that `load` knows; quick, for checking a command line.

    Raises:
      DataError: if it is not, or the folder does not exist.

    >>> check_name("cifar10")
    'cifar10'
    >>> check_name("cifar")
    Traceback (most recent call last):
      ...
    experiments.data.types.DataError: unknown dataset 'cifar': expected auto, cifar10, digits or
    folder:PATH; did you mean cifar10?
    """
    if name.startswith(FOLDER):
        path = name.removeprefix(FOLDER)
        if not path or not Path(path).expanduser().is_dir():
            raise DataError(f"dataset {name!r}: no folder {path!r}; {_folder.LAYOUT}")
    elif name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = f"{', '.join(NAMES)} or {FOLDER}PATH"
        raise DataError(f"unknown dataset {name!r}: expected {known}{hint}")
    return name


def load(
    name: str = "auto", *, data_dir: str | Path | None = None, notify: Notify = print
) -> Dataset:
    """Load a data set into memory.

    Args:
      name: one of
        `cifar10`: CIFAR-10, prepared data or a download; never anything else in its place.
        `auto`: CIFAR-10; without a `data_dir` the digits in its place, with a notice, if it is
          neither here nor to be downloaded.
        `digits`: scikit-learn's handwritten digits as 32×32×3 images; needs no network.
        `folder:PATH`: PATH/train/<class>/*.jpg|jpeg|png and PATH/test/<class>/….
      data_dir: tensorflow-datasets' directory, for CIFAR-10; None for `TFDS_DATA_DIR` or, without
        that, `~/tensorflow_datasets`.
      notify: told what goes on; `print` or alike.

    Returns:
      The data set; its `name` says what was really loaded.

    Raises:
      DataError: if it cannot be had; the message says what to do.

    >>> load("digits").train.images.shape
    (1400, 32, 32, 3)
    """
    check_name(name)
    if name == "digits":
        return _digits.load()
    if name.startswith(FOLDER):
        return _folder.load(name.removeprefix(FOLDER), notify)
    try:
        return _cifar10.load(data_dir, notify)
    except _cifar10.NotAtHandError as error:
        if name == "cifar10" or data_dir is not None:  # a directory that was named is meant
            raise
        notify(stand_in_notice(str(error)))
        return _digits.load()


def stand_in_notice(reason: str) -> str:
    """What tells the user that this is not CIFAR-10, in a frame that cannot be overlooked."""
    lines = textwrap.wrap(f"Why: {reason}.", 76, break_long_words=False, break_on_hyphens=False)
    text = (
        "THIS IS NOT CIFAR-10: scikit-learn's handwritten digits are used instead.",
        "They are real images and need no network, but they are a far easier task:",
        'no figure of this run is a CIFAR-10 result. Its outputs say "dataset": "digits".',
        "For settings that suit them: --preset digits.",
        *lines,
    )
    return "\n".join(("!" * 80, *(f"!!  {line}" for line in text), "!" * 80))
