"""CIFAR-100: `python -m experiments.cifar100 --subnets 4`."""

import sys

from experiments.extras import needed

PROGRAM = "python -m experiments.cifar100"

if __name__ == "__main__":
    with needed(PROGRAM, "experiments"):
        from experiments.cli import main

        sys.exit(main(PROGRAM, dataset="cifar100"))
