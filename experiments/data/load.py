"""Any data set by its name, and the stand-in where CIFAR-10 cannot be had."""

import difflib
import importlib
import pkgutil
import textwrap
from pathlib import Path
from typing import Any

from experiments.data import sources
from experiments.data.types import DataError, Dataset, NotAtHandError, Notify

FOLDER = "folder:"


def check_name(name: str) -> None:
    """Check that `load` knows a name, without loading anything.

    Raises:
      DataError: it does not, or the folder does not exist.

    >>> check_name("cifar")
    Traceback (most recent call last):
      ...
    experiments.data.types.DataError: unknown dataset 'cifar': expected auto, cifar10, digits or
    folder:PATH; did you mean cifar10?
    """
    if name.startswith(FOLDER):
        path = name.removeprefix(FOLDER)
        if not path or not Path(path).expanduser().is_dir():
            layout = _source("folder").LAYOUT
            raise DataError(f"dataset {name!r}: no folder {path!r}; {layout}")
        return
    found = [module.name for module in pkgutil.iter_modules(sources.__path__)]
    known = ["auto", *(source for source in found if source != "folder")]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        expected = f"{', '.join(known)} or {FOLDER}PATH"
        raise DataError(f"unknown dataset {name!r}: expected {expected}{hint}")


def load(
    name: str = "auto", *, data_dir: str | Path | None = None, notify: Notify = print
) -> Dataset:
    """Load a data set into memory.

    Args:
      name: one of
        `auto`: CIFAR-10; if it is neither here nor can be downloaded and no `data_dir` is given,
          the digits in its place, with a notice.
        `folder:PATH`: PATH/train/<class>/*.jpg|jpeg|png and PATH/test/<class>/….
        or the name of a file in `experiments/data/sources`, such as `cifar10` or `digits`.
      data_dir: where its files are; None for the usual place.
      notify: called with what people should know.

    Returns:
      The data set; its `name` says what was really loaded.

    Raises:
      DataError: it cannot be had; the message says what to do.

    >>> load("digits").train.images.shape
    (1400, 32, 32, 3)
    """
    check_name(name)
    if name.startswith(FOLDER):
        return _source("folder").load(name.removeprefix(FOLDER), notify)
    try:
        return _source("cifar10" if name == "auto" else name).load(data_dir, notify)
    except NotAtHandError as error:
        if name != "auto" or data_dir is not None:  # a directory that was given is meant
            raise
        notify(_stand_in_notice(str(error)))
        return _source("digits").load()


def _source(name: str) -> Any:
    return importlib.import_module(f"{sources.__name__}.{name}")


def _stand_in_notice(reason: str) -> str:
    """Return a notice, in a frame that cannot be overlooked, that this is not CIFAR-10."""
    lines = (
        "THIS IS NOT CIFAR-10: scikit-learn's handwritten digits are used instead.",
        "They are real images and need no network, but they are a far easier task:",
        'no figure of this run is a CIFAR-10 result. Its outputs say "dataset": "digits".',
        "For settings that suit them: --preset digits.",
        *textwrap.wrap(f"Why: {reason}.", 76, break_long_words=False, break_on_hyphens=False),
    )
    return "\n".join(("!" * 80, *(f"!!  {line}" for line in lines), "!" * 80))
