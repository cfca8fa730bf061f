"""CIFAR-10: `python -m experiments.cifar10 --subnets 4`.

The default preset takes minutes on two CPU cores; `--preset paper` is the published size (four
ResNet-32 of width 16 in one of width 64, 160 epochs) and wants GPUs.
"""

import sys

from experiments.cli import main

if __name__ == "__main__":
    sys.exit(main("python -m experiments.cifar10"))
