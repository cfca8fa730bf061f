"""Any data set by its name, and the stand-in where CIFAR-10 cannot be had."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from experiments.data import sources
from experiments.data.types import DataError, Dataset, NotAtHandError, Notify


def load(
    name: str = "auto", *, data_dir: str | Path | None = None, notify: Notify = print
) -> Dataset:
    """Load a data set into memory.

    Args:
      name: one of
        `auto`: CIFAR-10; if it is neither here nor can be downloaded and no `data_dir` is given,
          the digits in its place, with a notice.
        `folder:PATH`: PATH/train/<class>/*.jpg and PATH/test/<class>/…, of any format of Pillow.
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
    kind, colon, path = name.partition(":")
    found = [module.name for module in pkgutil.iter_modules(sources.__path__)]
    known = ["auto", *(source for source in found if source != "folder")]
    if name not in known and (kind, colon) != ("folder", ":"):
        raise DataError(
            f"unknown dataset {name!r}: expected {', '.join(known)} or folder:PATH for --dataset"
        )
    try:
        if colon:
            return _source("folder").load(path, notify)
        return _source("cifar10" if name == "auto" else name).load(data_dir, notify)
    except NotAtHandError as error:
        if name != "auto" or data_dir is not None:  # a directory that was given is meant
            raise
        notify(
            "THIS IS NOT CIFAR-10 but scikit-learn's handwritten digits, a far easier task: "
            f"{error}"
        )
        return _source("digits").load()
    except OSError as error:
        raise DataError(f"--dataset {name} cannot be read: {error}") from error


def _source(name: str) -> Any:
    return importlib.import_module(f"{sources.__name__}.{name}")
