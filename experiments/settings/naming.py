"""Settings as flags: their names and values, the command that gives them, the default workdir."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.settings.flags import Keeping, Machines, Settings
from experiments.settings.presets import PRESETS

# Two runs that differ in these only have the same results: they say where a run reads and writes,
# and the preset's values are compared one by one. A sub-network that diverged is in the results.
PLACES = (
    *("workdir", "data_dir", "preset"),
    *(field.name for group in (Keeping, Machines) for field in dataclasses.fields(group)),
)


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


def changed(settings: Settings, flags: Mapping[str, Any]) -> Settings:
    """Return settings with other values of the named flags, in whichever group.

    >>> changed(Settings(), {"width": 64, "seed": 1}).network.width
    64
    """
    groups: dict[str, Any] = {
        name: group for name, group in vars(settings).items() if dataclasses.is_dataclass(group)
    }
    new = {name: value for name, value in flags.items() if name in vars(settings)}
    for name, group in groups.items():
        inside = {field: value for field, value in flags.items() if field in vars(group)}
        new[name] = dataclasses.replace(group, **inside)
    if unknown := flags.keys() - flat(settings).keys():
        raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
    return dataclasses.replace(settings, **new)


def default_workdir(settings: Settings) -> Path:
    """Return a folder in runs/: a readable name, and a digest of what the name does not say.

    >>> default_workdir(Settings()).as_posix()
    'runs/cifar10-resnet8-w32-k4-seed0'
    """
    network, subnets, seed = settings.network, settings.subnets, settings.seed
    kind, folder, path = settings.data.dataset.partition("folder:")
    dataset = f"folder {Path(path).name}" if folder else kind.removeprefix("tfds:")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", dataset.replace("auto", "cifar10")).strip("-").lower()
    model = re.sub(r"[^A-Za-z0-9]+", "-", network.model)
    name = f"{readable[:100]}-{model}{network.depth}-w{network.width}-k{subnets}-seed{seed}"
    changes = _changes(settings, Settings())
    for said in ("model", "depth", "width", "subnets", "seed"):
        changes.pop(said, None)
    if folder:  # different paths can have equal readable names
        changes["dataset"] = str(Path(path).resolve())
    if changes:
        name += "-" + hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs", name)


def _changes(settings: Settings, preset: Settings) -> dict[str, Any]:
    """Return the flags, apart from those in `PLACES`, whose values differ from the preset's."""
    plain = flat(preset)
    return {n: v for n, v in flat(settings).items() if n not in PLACES and v != plain[n]}
