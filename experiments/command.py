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


PROGRAMS = {
    "train": Program(
        "decompose, train, compose and fine-tune a network, beside a baseline",
        "experiments.cli",
    ),
    "predict": Program("name what is on images, with the networks of a run", "experiments.predict"),
    "report": Program(
        "write the reports of runs again, and compare several",
        "experiments.report.__main__",
    ),
    "runs": Program(
        "list the runs in a folder, with their states and accuracies",
        "experiments.runs",
    ),
}
SHELLS = ("bash", "zsh", "tcsh")
USAGE = "\n".join(
    [
        "usage: dcjax COMMAND [FLAGS]",
        "",
        *(f"  {name:<9} {program.does}" for name, program in PROGRAMS.items()),
        "",
        "`dcjax COMMAND --help` lists its flags; `dcjax completion bash` (or zsh, tcsh)",
        "prints a script that completes them in the shell.",
    ]
)


def main(args: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code; 0 for `--help`, 2 for an unknown subcommand."""
    given = sys.argv[1:] if args is None else args
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name == "completion":
        return completion(given[1:])
    if name not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        print(f"dcjax: error: unknown command {name!r}; choose from {known}", file=sys.stderr)
        return BAD_INPUT
    with needed(f"dcjax {name}", "experiments"):
        return importlib.import_module(PROGRAMS[name].module).main(f"dcjax {name}", given[1:])


def completion(args: Sequence[str]) -> int:
    """Print a shell's script that completes the programs' names and the flags of `train`."""
    if len(args) != 1 or args[0] not in SHELLS:
        print(f"dcjax completion: error: give one of {', '.join(SHELLS)}", file=sys.stderr)
        return BAD_INPUT
    with needed("dcjax completion", "experiments"):
        import tyro

        from experiments.settings.flags import Settings

    def other() -> None:
        """Stand for a program whose arguments are files."""

    tyro.extras.subcommand_cli_from_dict(
        {name: Settings if name == "train" else other for name in PROGRAMS},
        prog="dcjax",
        args=["--tyro-print-completion", args[0]],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return 0
