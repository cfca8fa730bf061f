"""Documents with places for measured tables, between `<!-- NAME -->` and `<!-- end -->`."""

import re
from collections.abc import Sequence
from pathlib import Path


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(text: str, name: str, body: str) -> str:
    """Return the document's text with another body in the place of that name.

    Raises:
      ValueError: the document has no such place.

    >>> put("<!-- a -->old<!-- end -->", "a", "new")
    '<!-- a -->\\nnew\\n<!-- end -->'
    """
    marked = re.compile(f"(<!-- {name} -->).*?(<!-- end -->)", re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"the document has no place <!-- {name} --> … <!-- end -->")
    return marked.sub(lambda found: f"{found[1]}\n{body}\n{found[2]}", text)


def write(document: Path, text: str) -> None:
    """Replace the document as a whole."""
    from dcjax.atomic import replacing  # imports JAX

    with replacing(document) as file:
        file.write(text.encode())
