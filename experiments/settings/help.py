"""The help of the command line on one screen or whole, and tyro's errors as one line."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from experiments.settings.flags import Settings

COMMON = (
    *("subnets", "preset", "dataset", "data_dir", "image_size", "train_size"),
    *("model", "depth", "width", "samples"),
    *("subnet_epochs", "finetune_epochs", "baseline_epochs", "batch_size", "learning_rate"),
    *("seed", "workdir", "fresh", "dry_run", "tracker"),
)
"""The flags of the short help, in its order."""
MORE = "`--help-all` lists every flag."


def show(program: str, settings: Settings, *, everything: bool) -> None:
    """Print the help: the common flags in a line each, or all flags in groups.

    Args:
      program: the command.
      settings: whose values are the defaults.
      everything: whether to show all flags.
    """
    kind, config = _whole(settings), ()
    if not everything:
        kind, config = _short(settings), (tyro.conf.FlagCreatePairsOff,)
    with contextlib.suppress(SystemExit):
        read(kind, program, ["--help"], config=(tyro.conf.OmitArgPrefixes, *config))


def read(kind: Any, program: str, args: Sequence[str] | None, **options: Any) -> Any:
    """Return what `tyro.cli` reads from the flags.

    Args:
      kind: a data class or a function. Its docstring begins the help, and is not wrapped.
      program: the command.
      args: the flags; by default those of the process.
      options: of `tyro.cli`.

    Raises:
      ValueError: they cannot be read; one line says why, in place of tyro's box.
      SystemExit: for `--help`, after printing it.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, prog=program, args=args, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"{_unboxed(printed.getvalue())}; see {program} --help") from None


def _unboxed(box: str) -> str:
    """Return what a box of tyro's says, without the help of each flag.

    >>> _unboxed("╭─ Bad ───╮\\n│ no such   │\\n│ flag.     │\\n│ ───────── │\\n│ --help │\\n╰──╯")
    'no such flag'
    >>> _unboxed("╭─ Required ─╮\\n│ Missing from it: │\\n│ PATH │\\n│ The folder. │\\n╰──╯")
    'missing PATH'
    """
    inside = [line.strip("│ ") for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()[1:-1]]
    # Where stdout is ASCII, tyro draws rules of "-" and no frame.
    parts = re.split(r"\n[─-]{5,}\n", re.sub("^-{5,}\n", "", "\n".join(inside)))
    message = " ".join(parts[0].split()).removeprefix("Error parsing ").rstrip(".")
    message = re.sub("^Unrecognized", "unrecognized", message)
    message = re.sub(r"^Missing from [^:]*: (\S+).*", r"missing \1", message)
    union = r"no type matching \{None\}\|(\S+) could be instantiated from \['(.*?)'\]\..*"
    message = re.sub(union, r"expected \1 or None, got '\2'", message)
    near = [part for part in parts if part.startswith("Perhaps you meant")]
    flags = [*dict.fromkeys(re.findall(r"^(--[\w-]+)", "\n".join(near), re.MULTILINE))][:2]
    return message + (f"; perhaps you meant {' or '.join(flags)}" if flags else "")


def _short(settings: Settings) -> type:
    """Return a data class of the common flags, each with a help of one line."""
    fields = {}
    for group in (settings, *_groups(settings).values()):
        for name, hint, value, text in _described(group):
            first = re.split(r"(?<=[.;:]) ", text)[0].rstrip(".;:")
            if choices := _choices(hint):
                said = f"({', '.join(choices)}; default: {value})"
                hint = str
            else:
                said = "" if value is None or value is False else f"(default: {value})"
            fields[name] = name, hint, value, first, said
    chosen = [_field(*fields[name]) for name in COMMON]
    kind = dataclasses.make_dataclass("Common", chosen)
    kind.__doc__ = f"{Settings.__doc__}\n{MORE}"
    return kind


def _whole(settings: Settings) -> type:
    """Return a data class of all flags in their groups, whose help can be wrapped anywhere."""

    def remade(group: Any) -> list[Any]:
        return [
            _field(name, hint, value, text, None) for name, hint, value, text in _described(group)
        ]

    groups = []
    for name, group in _groups(settings).items():
        kind = dataclasses.make_dataclass(type(group).__name__, remade(group))
        kind.__doc__ = type(group).__doc__
        groups.append((name, kind, dataclasses.field(default_factory=kind)))
    kind = dataclasses.make_dataclass("Settings", [*remade(settings), *groups])
    kind.__doc__ = Settings.__doc__
    return kind


def _groups(settings: Settings) -> dict[str, Any]:
    return {
        name: value for name, value in vars(settings).items() if dataclasses.is_dataclass(value)
    }


def _described(group: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield name, type, value and help of a group's flags; the help is one paragraph."""
    hints = get_type_hints(type(group))
    texts = {
        param.arg_name: " ".join((param.description or "").split())
        for param in docstring_parser.parse_from_object(type(group)).params
    }
    for name, value in vars(group).items():
        if not dataclasses.is_dataclass(value):
            yield name, hints[name], value, texts[name]


def _field(name: str, hint: Any, value: Any, text: str, said: str | None) -> tuple[str, Any, Any]:
    kinds = {str: "NAME", int: "INT", Path: "PATH", float: "FLOAT"}
    types = [getattr(part, "__origin__", part) for part in get_args(hint) or (hint,)]
    metavar = next((kinds[part] for part in types if part in kinds), None)
    shown = tyro.conf.arg(help=text, metavar=metavar, help_behavior_hint=said)
    return name, Annotated[hint, shown], dataclasses.field(default=value)


def _choices(hint: Any) -> tuple[str, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()
