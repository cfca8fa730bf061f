"""Writes reports: of one run beside its results, of several where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # at run time they would import JAX and matplotlib
    from experiments.report.content import Section
    from experiments.report.evidence import Evidence

AGAIN = "python -m experiments.report {}".format
NEEDS = "pip install -e '.[experiments]'"


def keep(folder: Path, gather: Callable[[], Evidence], say: Callable[[str], None]) -> None:
    """Keep a run's evidence in its folder; say so if that fails, because results matter more."""
    from experiments.report import evidence

    try:
        evidence.write(folder, gather())
    except Exception as error:
        say(f"the report will lack kernels, samples and answers: {_short(error)}")


def after_run(folder: Path, say: Callable[[str], None]) -> None:
    """Write the report of a run that has ended; say why if that fails."""
    try:
        of_run(folder)
    except ModuleNotFoundError as missing:
        say(f"no report without {missing.name}: {NEEDS}, then {AGAIN(folder)}")
    except Exception as error:
        say(f"the report failed, the results are kept: {_short(error)}; again: {AGAIN(folder)}")
    else:
        say(f"report: {folder / 'report.html'}")


def of_run(folder: Path) -> None:
    """Write `report.html` and `report.md` into a run's folder.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
      WorkdirError: the folder holds no finished run.
      ValueError: the folder's files are damaged.
    """
    from experiments.report import content, runs  # draws with matplotlib

    run = runs.load(folder)
    _write(folder / "report", content.heading(run), content.of_run(run))


def of_runs(folders: Sequence[Path], output: Path) -> None:
    """Write a comparison of several runs: `output`, and the same name with the suffix .md.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
      WorkdirError: a folder holds no finished run.
      ValueError: a folder's files are damaged.
    """
    from experiments.report import content, runs

    found = [runs.load(folder) for folder in folders]
    _write(output.with_suffix(""), f"{len(found)} runs side by side", content.of_runs(found))


def _write(stem: Path, title: str, sections: Sequence[Section]) -> None:
    from dcjax.atomic import replacing
    from experiments.report import page

    html = stem.name + ".html"
    texts = {html: page.html(title, sections), stem.name + ".md": page.text(title, sections, html)}
    for name, text in texts.items():
        with replacing(stem.with_name(name)) as file:
            file.write(text.encode())


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
