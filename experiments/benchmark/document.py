"""BENCHMARKS.md: every table between its markers, with the conditions of its rows."""

from pathlib import Path

from experiments.benchmark import tables
from experiments.benchmark.tables import Rows
from experiments.markdown import put, write


def rewrite(document: Path, rows: dict[str, Rows], places: str = "") -> None:
    """Put every table that has rows between `<!-- NAME -->` and `<!-- end -->`.

    An accelerator's table is appended to the document if it has no place for it.

    Args:
      document: the file.
      rows: the rows of each table.
      places: the flags that say where the command keeps rows and tables.
    """
    text = document.read_text()
    for name in rows:
        plain, _, platform = name.partition(" on ")
        table = tables.load(plain).render(rows[name])
        body = f"{_conditions(rows[name], plain, places)}\n\n{table}"
        if platform and f"<!-- {name} -->" not in text:
            title = f"{plain.capitalize()} on a {platform}"
            text += f"\n## {title}\n\n<!-- {name} -->\n<!-- end -->\n"
        text = put(text, name, body)
    write(document, text)


def _conditions(rows: Rows, name: str, places: str) -> str:
    """Return the command, and a line for each set of conditions that rows were measured in."""
    runs = {row["runs"] for row in rows.values()}
    lines = {
        "; ".join(
            [
                f"{row['on']['device']}: {row['on']['processor']}, {row['on']['cores']} cores",
                ", ".join(f"{k} {v}" for k, v in row["on"]["versions"].items() if k != "dcjax"),
                *([f"commit {row['commit']}"] if row.get("commit") else []),
                *([f"{row['runs']} runs"] if len(runs) > 1 else []),
                f"{row['date']}.",
            ]
        )
        for row in rows.values()
    }
    full = " --full" if any(row.get("full") for row in rows.values()) else ""
    command = f"python -m experiments.benchmark --only {name}{full} --runs {max(runs)}{places}"
    return "\n".join([f"    {command}", "", *sorted(lines)])
