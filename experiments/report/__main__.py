"""Write a run's report again, or compare runs: `python -m experiments.report DIR…`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from experiments.extras import needed

PROGRAM = "python -m experiments.report"
OK, BAD_INPUT = 0, 2


def main(program: str = PROGRAM, args: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 0 done, 2 bad input."""
    import tyro

    from experiments.report import write
    from experiments.run.workdir import WorkdirError
    from experiments.settings import help

    shown = tyro.conf.arg(metavar="PATH …", help_behavior_hint="(one or more)")

    def report(
        folders: Annotated[tuple[Path, ...], tyro.conf.Positional, shown],
        output: Path = Path("comparison.html"),
    ) -> tuple[tuple[Path, ...], Path]:
        """Write the reports of runs; of several, compare them too.

        Args:
          folders: workdirs of finished runs.
          output: the page that compares several runs; the same in Markdown is beside it.
        """
        return folders, output

    try:
        folders, output = help.read(report, program, args)
        if not folders:
            raise ValueError("no runs given: name one or more workdirs")
        good = []
        for folder in folders:
            try:
                write.of_run(folder)
            except ModuleNotFoundError:
                raise
            except (WorkdirError, OSError) as error:
                print(f"{program}: error: {error}", file=sys.stderr)
            except Exception as error:  # damaged files lead to many types
                said = f"{folder}: its results.json, metrics or report.npz are damaged: {error!r}"
                print(f"{program}: error: {said}", file=sys.stderr)
            else:
                print(folder / "report.html")
                good.append(folder)
        if len(good) > 1:
            write.of_runs(good, output)
            print(output)
    except (WorkdirError, ValueError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    return OK if len(good) == len(folders) else BAD_INPUT


if __name__ == "__main__":
    with needed(PROGRAM, "experiments"):
        sys.exit(main())
