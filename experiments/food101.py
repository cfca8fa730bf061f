"""Food-101: `python -m experiments.food101 --subnets 4`."""

import sys

from experiments.extras import needed

PROGRAM = "python -m experiments.food101"

if __name__ == "__main__":
    with needed(PROGRAM, "experiments"):
        from experiments.cli import main

        sys.exit(main(PROGRAM, dataset="tfds:food101", image_size=64))
