"""The documentation site: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.docutils import SphinxDirective

import dcjax

DOCS = Path(__file__).parent
ROOT = DOCS.parent
REPOSITORY = "https://github.com/dcjax/dcjax"

project = "dcjax"
release = version = dcjax.__version__
author = "the dcjax authors"
copyright = "the dcjax authors; Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "study", "pictures"]

html_theme = "sphinx_book_theme"
html_title = "dcjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "repository_url": REPOSITORY,
    "use_repository_button": True,
    "use_issues_button": True,
    "path_to_docs": "docs",
    "show_toc_level": 2,
}

myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"  # browsers read it without any script or network
myst_heading_anchors = 3

# `name` in a docstring is code, and a link where it is a public name.
default_role = "py:obj"
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": "tree_flatten, tree_flatten_with_keys, tree_unflatten",  # for JAX alone
}
autodoc_typehints_format = "short"
autosummary_generate = False
maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_merge_streams = True


class Names(SphinxDirective):
    """Document public names of a module: a table of first lines, then each in full."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return what autosummary and autodoc make of the names."""
        module = importlib.import_module(self.arguments[0])
        names = list(self.content)
        table = [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names), ""]
        entries = [_entry(name, getattr(module, name)) for name in names]
        head = [f".. currentmodule:: {module.__name__}", ""]
        text = "\n".join(["```{eval-rst}", *head, *table, *entries, "```"])
        return self.parse_text_to_nodes(text)


def _entry(name: str, thing: Any) -> str:
    if not inspect.isclass(thing):
        return f".. autofunction:: {name}"
    if issubclass(thing, BaseException):
        return f".. autoexception:: {name}"
    # Sphinx finds no signature of a TypedDict, and asks `sign` for one only if it has one
    return f".. autoclass:: {name}" + "()" * issubclass(thing, dict)


def plain_types(signature: str) -> str:
    """Return a signature with the types as the code spells them."""
    for long, short in (
        (r"~?(jax\.)?jaxlib\._jax\.Array", "Array"),
        (r"~?(jaxtyping|numpy|collections\.abc|typing)\.(?=\w)", ""),
        (r"~?optax\._src\.\w+\.", "optax."),
        (r"(\w+)(\[)Array(, '[^']*'\]) \| \1\[ndarray\3", r"\1\2Array\3"),
        (r"Array \| ndarray \| bool \| number \| bool \| int \| float \| complex", "ArrayLike"),
    ):
        signature = re.sub(long, short, signature)
    return plain_defaults(signature)


def fields_only(thing: type) -> str:
    """Return a class's signature without types, which its docstring explains, and Flax's fields."""
    if issubclass(thing, dict):
        return f"({', '.join(inspect.get_annotations(thing))})"
    found = inspect.signature(thing)
    flax = ("parent", "name") if "parent" in found.parameters else ()
    own = [
        field.replace(annotation=field.empty)
        for field in found.parameters.values()
        if field.name not in flax
    ]
    text = str(found.replace(parameters=own, return_annotation=found.empty))
    return plain_defaults(text)


def plain_defaults(signature: str) -> str:
    """Return a signature with the names of functions and classes that are defaults."""
    return re.sub(r"<(?:function|class) '?[\w.<>]*?(\w+)'?(?: at \w+)?>", r"\1", signature)


def relinked(text: str, folder: Path, page: Path) -> str:
    """Return a page's text with the links that leave `docs/` led to the site or the repository.

    Args:
      text: Markdown whose relative links hold from `folder`.
      folder: of the file that holds the text.
      page: the folder of the page that shows it.
    """

    def new(match: re.Match[str]) -> str:
        name, anchor = match["name"], match["anchor"] or ""
        target = (folder / name).resolve()
        if not target.exists():
            return match[0]
        if target.parent == ROOT and (DOCS / target.name.lower()).exists():
            target = DOCS / target.name.lower()
        if target.is_file() and target.is_relative_to(DOCS):
            return f"]({os.path.relpath(target, page)}{anchor})"
        return f"]({REPOSITORY}/blob/main/{target.relative_to(ROOT)}{anchor})"

    return re.sub(r"\]\((?P<name>[\w./-]+)(?P<anchor>#[\w-]+)?\)", new, text)


def inline_math(writer: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def displayed_math(writer: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Connect what Sphinx calls for every page, included file, and member of a class."""

    def read(app: Any, name: str, source: list[str]) -> None:
        folder = (DOCS / name).parent
        text = source[0].replace("\n\n```\n", "\n```\n")  # the blank line ends a doctest
        source[0] = relinked(text, folder, folder)

    def include(app: Any, path: Path, name: str, source: list[str]) -> None:
        source[0] = relinked(source[0], (DOCS / path).resolve().parent, (DOCS / name).parent)

    def skip(app: Any, kind: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
        return True if type(thing).__name__ == "_tuplegetter" else None  # a field of a NamedTuple

    def sign(app: Any, kind: str, name: str, *rest: Any) -> tuple[str, str | None] | None:
        thing, _, arguments, returns = rest
        if arguments is None:
            return None
        if kind == "class":
            return fields_only(thing), None
        return plain_types(arguments), returns and plain_types(returns)

    def docstring(app: Any, kind: str, name: str, *rest: Any) -> None:
        lines = rest[-1]
        for place, line in enumerate(lines):
            if kind == "property" if place == 0 else lines[place - 1].strip() == "Returns:":
                line = re.sub(r"^(\s*)", r"\1: ", line)  # a colon within it ends no type
            # "K." alone would be an item of a list from K on
            lines[place] = re.sub(r"^(\s+\w+: )(?=[A-Z]\.$)", r"\1\\", line)

    app.add_html_math_renderer("mathml", (inline_math, None), (displayed_math, None))
    app.add_directive("names", Names)
    app.connect("source-read", read)
    app.connect("include-read", include)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip)
