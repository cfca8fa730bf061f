"""The install line where a module is missing. Imports only the standard library."""

import contextlib
import sys
from collections.abc import Iterator

BAD_INPUT = 2


@contextlib.contextmanager
def needed(program: str, extra: str) -> Iterator[None]:
    """End the program with one line and exit code 2 if what runs within lacks a package.

    Args:
      program: the command, for the message: `python -m experiments.cifar10`.
      extra: the extra of dcjax that has the package.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        name = missing.name or ""
        if name.startswith("experiments"):  # not a package to install
            raise
        print(
            f"{program}: error: {name} is not installed: pip install -e '.[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)
