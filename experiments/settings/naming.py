"""Settings as flags: their names and values, the command that gives them, the default workdir."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from experiments.settings.flags import Keeping, Settings
from experiments.settings.presets import PRESETS

# Two runs that differ in these only have the same results: they say where a run reads and writes,
# and the preset's values are compared one by one. A sub-network that diverged is in the results.
PLACES = ("workdir", "data_dir", "preset", *(f.name for f in dataclasses.fields(Keeping)))


def flat(settings: Settings) -> dict[str, Any]:
    """Return the settings as one dict by their flags' names, of plain values that JSON can hold.

    >>> flat(Settings(subnets=2))["subnets"], flat(Settings())["width"]
    (2, 32)
    """
    flags: dict[str, Any] = {}
    for name, value in dataclasses.asdict(settings).items():
        flags |= value if isinstance(value, dict) else {name: value}
    return {name: str(v) if isinstance(v, Path) else v for name, v in flags.items()}


def expanded(settings: Settings) -> Settings:
    """Return the settings with `~` in their paths replaced by the home directory.

    A shell does not expand it in `--workdir=~/run` and `folder:~/images`.

    Raises:
      RuntimeError: the home directory is not known.

    >>> "~" in str(expanded(Settings(workdir=Path("~/run"))).workdir)
    False
    """
    workdir = settings.workdir and settings.workdir.expanduser()
    data_dir = settings.data.data_dir and settings.data.data_dir.expanduser()
    kind, folder, path = settings.data.dataset.partition("folder:")
    dataset = kind + folder + (str(Path(path).expanduser()) if path else "")
    data = dataclasses.replace(settings.data, dataset=dataset, data_dir=data_dir)
    return dataclasses.replace(settings, workdir=workdir, data=data)


def as_args(settings: Settings) -> list[str]:
    """Return the flags of a command with these settings, without those in `PLACES`.

    >>> as_args(dataclasses.replace(Settings(), seed=3, subnets=2))
    ['--subnets', '2', '--seed', '3']
    """
    args = [] if settings.preset == "quick" else ["--preset", settings.preset]
    for name, value in _changes(settings, PRESETS[settings.preset]).items():
        if isinstance(value, bool):
            args.append(as_flag(name) if value else as_flag(f"no_{name}"))
        else:
            args += [as_flag(name), str(value)]
    return args


def as_flag(name: str) -> str:
    """Return the flag of a setting.

    >>> as_flag("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def default_workdir(settings: Settings) -> Path:
    """Return a folder in runs/: a readable name, and a digest where flags depart from the preset.

    >>> default_workdir(Settings()).as_posix()
    'runs/auto-quick-k4-seed0'
    """
    named = {"subnets": settings.subnets, "seed": settings.seed}
    changes = _changes(settings, dataclasses.replace(PRESETS[settings.preset], **named))
    kind, folder, path = settings.data.dataset.partition("folder:")
    if folder:  # different paths can have equal readable names
        changes["dataset"] = str(Path(path).resolve())
        kind = f"folder-{Path(path).name}"
    dataset = re.sub(r"[^A-Za-z0-9]+", "-", kind).strip("-").lower()[:100]
    name = f"{dataset}-{settings.preset}-k{settings.subnets}-seed{settings.seed}"
    if folder or changes.keys() - {"dataset"}:
        name += "-" + hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs", name)


def _changes(settings: Settings, preset: Settings) -> dict[str, Any]:
    """Return the flags, apart from those in `PLACES`, whose values differ from the preset's."""
    plain = flat(preset)
    return {n: v for n, v in flat(settings).items() if n not in PLACES and v != plain[n]}
