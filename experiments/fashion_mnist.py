"""Fashion-MNIST: `python -m experiments.fashion_mnist --subnets 4`."""

import sys

from experiments.extras import needed

PROGRAM = "python -m experiments.fashion_mnist"

if __name__ == "__main__":
    with needed(PROGRAM, "experiments"):
        from experiments.cli import main

        sys.exit(main(PROGRAM, dataset="tfds:fashion_mnist"))
