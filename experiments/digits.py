"""Handwritten digits, no network needed: `python -m experiments.digits --subnets 4`."""

import sys

from experiments.extras import needed

PROGRAM = "python -m experiments.digits"

if __name__ == "__main__":
    with needed(PROGRAM, "experiments"):
        from experiments.cli import main

        sys.exit(main(PROGRAM, preset="digits"))
