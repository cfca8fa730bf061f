"""The measured rows as tables, put between their markers in a document."""

import re
from pathlib import Path
from typing import Any

from experiments.benchmark.profile import PASSES
from experiments.benchmark.steps import step_ratios
from experiments.markdown import put, table, write

Rows = dict[str, dict[str, Any]]


def rewrite(document: Path, rows: dict[str, Rows], places: str = "") -> None:
    """Put every table that has rows between `<!-- NAME -->` and `<!-- end -->`.

    Args:
      document: the file.
      rows: by table.
      places: the flags that say where the command keeps rows and tables.
    """
    text = document.read_text()
    for name in rows:
        plain, _, platform = name.partition(" on ")
        body = "\n\n".join([_conditions(rows[name], plain, places), TABLES[plain](rows[name])])
        if platform and f"<!-- {name} -->" not in text:
            title = f"{plain.capitalize()} on a {platform}"
            text += f"\n## {title}\n\n<!-- {name} -->\n<!-- end -->\n"
        text = put(text, name, body)
    write(document, text)


def named(table: str, platform: str) -> str:
    """What a table is called on a platform: the CPU's have the plain names.

    >>> named("steps", "cpu"), named("steps", "gpu")
    ('steps', 'steps on gpu')
    """
    return table if platform == "cpu" else f"{table} on {platform}"


def _conditions(rows: Rows, name: str, places: str) -> str:
    """The command and what the rows were measured on, a line for all that have that in common."""
    every = {row["runs"] for row in rows.values()}
    conditions = {
        (
            f"{row['on']['device']}: {row['on']['processor']}, {row['on']['cores']} cores",
            ", ".join(f"{k} {v}" for k, v in row["on"]["versions"].items() if k != "dcjax"),
            *([f"commit {row['commit']}"] if row.get("commit") else []),
            *([f"{row['runs']} runs"] if len(every) > 1 else []),
            row["date"],
        )
        for row in rows.values()
    }
    lines = "\n".join("; ".join(condition) + "." for condition in sorted(conditions))
    full = " --full" if any(row.get("full") for row in rows.values()) else ""
    command = f"python -m experiments.benchmark --only {name}{full} --runs {max(every)}{places}"
    return f"    {command}\n\n{lines}"


def _ms(timing: dict[str, float]) -> str:
    """Median and range in milliseconds, of few with a place more."""
    places = 0 if timing["median"] >= 0.02 else 1 if timing["median"] >= 0.005 else 2
    median, fastest, slowest = (
        f"{1e3 * timing[key]:.{places}f}" for key in ("median", "fastest", "slowest")
    )
    return f"{median} ({fastest}–{slowest})"


def _numbers(name: str) -> list[int]:
    """The numbers in a row's name: by them rows stand in order, whenever they were measured.

    >>> _numbers("ResNet-8, width 16, K = 4")
    [8, 16, 4]
    """
    return [int(number) for number in re.findall(r"\d+", name)]


def _steps(rows: Rows) -> str:
    columns = ["side_by_side", "single", "global", "torch_loop", "torch_vmap", "torch_global"]
    body = []
    for name, row in sorted(rows.items(), key=lambda item: _numbers(item[0])):
        subnets = _numbers(name)[2]
        ratios = step_ratios({key: row[key] for key in columns if key in row}, subnets)
        body.append(
            [name]
            + [_ms(row[key]) if key in row else "–" for key in columns]
            + [
                f"{ratios[key]:.2f}" if key in ratios else "–"
                for key in ("single", "torch", "ideal", "torch_global")
            ]
        )
    head = ["sub-networks", "side by side, ms", "one alone", "global"]
    head += ["PyTorch loop", "PyTorch vmap", "PyTorch global"]
    return table([*head, "(a) ≤ 1", "(b) ≤ 1", "(c) ≤ 1.3", "global ≤ 1"], body)


def _convolutions(rows: Rows) -> str:
    whose = ("lax", "native", "torch")
    columns = [f"{name} {who}" for name in PASSES for who in whose]
    body = [
        [name, *(f"{row[key]:.0f}" if key in row else "–" for key in columns)]
        for name, row in rows.items()
    ]
    head = ["3×3, 128 images; GF/s", "forward: XLA's", "compiled", "PyTorch's"]
    head += ["by the image: XLA's", "compiled", "PyTorch's"]
    head += ["by the kernel: XLA's", "compiled", "PyTorch's"]
    return table(head, body)


def _norms(rows: Rows) -> str:
    body = [
        [
            name,
            *(f"{1e3 * row[who]['median']:.2f}" for who in ("flax", "dcjax")),
            f"{row['dcjax']['median'] / row['flax']['median']:.2f}",
        ]
        for name, row in rows.items()
    ]
    head = ["batch norm and ReLU, forward and gradient, 128 images; ms", "Flax's", "dcjax.models'"]
    return table([*head, "of Flax's"], body)


def _profile(rows: Rows) -> str:
    names = {"lax": "XLA's convolutions", "native": "compiled ones", "torch": "PyTorch"}
    names["torch_compiled"] = "PyTorch, `torch.compile`"
    body = []
    for name, row in rows.items():
        for who, what in names.items():
            if who in row:
                step, *parts = row[who]
                parts = [*parts, step - sum(parts)] if parts else []
                times = [f"{1e3 * s:.0f}" for s in (step, *parts)]
                times += ["–"] * (5 - len(times))
                ratio = f"{step / row['torch'][0]:.2f}" if "torch" in row else "–"
                body.append([f"{name}, {what}", *times, ratio])
    head = ["one network", "step, ms", "convolutions forward", "by the image", "by the kernel"]
    return table([*head, "rest", "of PyTorch's step"], body)


def _engines(rows: Rows) -> str:
    first = next(iter(rows.values()))
    columns = [key for key, value in first.items() if isinstance(value, dict) and key != "on"]
    body = [[name, *(_ms(row[key]) for key in columns)] for name, row in rows.items()]
    return table(["sub-networks on one device, ms a step", *columns], body)


def _copies(rows: Rows) -> str:
    body = []
    for name, row in rows.items():
        seconds = {
            key: row[key]["median"] for key in ("copy", "compose", "extract", "copy_of_stack")
        }
        body.append(
            [
                name,
                *(_ms(row[key]) for key in ("copy", "compose")),
                f"{seconds['copy'] / seconds['compose']:.2f}",
                *(_ms(row[key]) for key in ("copy_of_stack", "extract")),
                f"{seconds['copy_of_stack'] / seconds['extract']:.2f}",
                f"{row['peak_bytes'] / row['bytes']:.2f}",
            ]
        )
    head = ["network", "copy of the global tree, ms", "compose", "copy/compose ≥ 0.5"]
    head += ["copy of the stack", "extract", "copy/extract ≥ 0.5", "peak memory / global tree"]
    return table(head, body)


def _machine(rows: Rows) -> str:
    body = [[name, f"{row['gflops']:.0f}", f"{row['gbytes']:.1f}"] for name, row in rows.items()]
    return table(["", "matrix product 4096³, GF/s", "copy of 256 MiB, GB/s written"], body)


def _scaling(rows: Rows) -> str:
    body = [
        [
            name,
            str(row["devices"]),
            _ms(row["step"]),
            f"{row['step']['median'] / row['devices'] * 1e3:.0f}",
            f"{row['augmented']['median'] / row['step']['median'] - 1:+.1%}",
            f"{row['device_bytes'] / 2**20:.0f}",
            f"{row['state_bytes'] / 2**20:.2f}",
            str(row["collectives"]),
            f"{row['compile_seconds']:.1f}",
        ]
        for name, row in rows.items()
    ]
    head = ["sub-networks", "host devices", "step, ms", "step / devices", "augmentation adds"]
    head += ["MiB a device", "MiB of state a member", "collectives", "compilation, s"]
    return table(head, body)


TABLES = {
    "machine": _machine,
    "engines": _engines,
    "steps": _steps,
    "profile": _profile,
    "convolutions": _convolutions,
    "norms": _norms,
    "copies": _copies,
    "scaling": _scaling,
}
