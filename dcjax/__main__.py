"""The command `dcjax`, and `python -m dcjax`: the programs in the repository, where they are."""

import importlib
import sys

REMEDY = """\
dcjax: error: the programs are not installed. They are in the repository and not in the package:
  git clone https://github.com/dcjax/dcjax && pip install -e './dcjax[experiments]'
In Python, dcjax.transfer does the same with your network and images."""


def main() -> int:
    """Run the programs' command line; without them, say how to get them."""
    try:
        command = importlib.import_module("experiments.command")
    except ModuleNotFoundError as error:
        if error.name not in ("experiments", "experiments.command"):
            raise
        print(REMEDY, file=sys.stderr)
        return 2
    return command.main()


if __name__ == "__main__":
    sys.exit(main())
