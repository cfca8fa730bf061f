"""The command `dcjax`, whose subcommands are the programs of this package."""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from experiments.extras import BAD_INPUT, needed


class Program(NamedTuple):
    """A subcommand: what it does, the module with its `main`, and the extra that it needs."""

    does: str
    module: str
    extra: str


PROGRAMS = {
    "train": Program(
        "decompose, train, compose and fine-tune a network; compare with training from scratch",
        "experiments.cli",
        "experiments",
    ),
    "predict": Program(
        "name what is on images, with the networks of a run", "experiments.predict", "experiments"
    ),
    "report": Program(
        "write the reports of runs again, and compare several",
        "experiments.report.__main__",
        "study",
    ),
    "runs": Program(
        "list the runs in a folder, with their states and accuracies",
        "experiments.runs",
        "experiments",
    ),
}
USAGE = "\n".join(
    [
        "usage: dcjax COMMAND [FLAGS]",
        "",
        *(f"  {name:<9} {program.does}" for name, program in PROGRAMS.items()),
        "",
        "`dcjax COMMAND --help` lists its flags.",
    ]
)


def main(args: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code; 0 for `--help`, 2 for an unknown subcommand."""
    given = sys.argv[1:] if args is None else args
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        print(f"dcjax: error: unknown command {name!r}; choose from {known}", file=sys.stderr)
        return BAD_INPUT
    with needed(f"dcjax {name}", PROGRAMS[name].extra):
        return importlib.import_module(PROGRAMS[name].module).main(f"dcjax {name}", given[1:])
