"""Sections as one HTML file that opens from the disk, and as Markdown."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from experiments import markdown
from experiments.report.content import Picture, Section, Table

STYLE = Path(__file__).with_name("style.css")


def html(title: str, sections: Sequence[Section]) -> str:
    """Return a page without any outside resource."""
    body = "\n".join(map(_section, sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def text(title: str, sections: Sequence[Section], page: str = "report.html") -> str:
    """Return the page in Markdown: its sentences and tables; the pictures are in `page`."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", *section.text]
        for table in section.tables:
            rows = [[_words(cell) for cell in row] for row in table.rows]
            parts.append(markdown.table(table.head, rows))
        if section.pictures:
            words = ", ".join(picture.words for picture in section.pictures)
            parts.append(f"Pictures, in {page}: {words}.")
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(line)}</p>" for line in section.text]
    parts += [_table(table) for table in section.tables if not table.folded]
    if section.pictures:
        parts.append('<div class="pictures">')
        parts += [
            f'<figure aria-label="{escape(picture.words)}">{picture.html}</figure>'
            for picture in section.pictures
        ]
        parts.append("</div>")
    for table in section.tables:
        if table.folded:
            parts.append(f"<details><summary>Show the figures</summary>{_table(table)}</details>")
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    lines = [
        "<tr>" + "".join(_cell(cell, first=place == 0) for place, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    ]
    body = "\n".join(lines)
    return (
        f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _cell(cell: str | Picture, *, first: bool) -> str:
    if isinstance(cell, Picture):
        return f'<td class="pixels">{cell.html}<br>{escape(cell.words)}</td>'
    if first:
        inner = ' class="inner"' if cell.startswith(" ") else ""
        return f'<th scope="row"{inner}>{escape(cell.strip())}</th>'
    return f"<td>{escape(cell)}</td>"


def _words(cell: str | Picture) -> str:
    return (cell.words if isinstance(cell, Picture) else cell).replace("|", "\\|")
