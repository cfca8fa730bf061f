"""The study's pictures, as SVG: accuracy against cost, and the gain against training length."""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from experiments.study.outcomes import Arms, Gain

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "dcjax"  # the same figures give the same file
from matplotlib import pyplot  # noqa: E402


def draw_curves(picture: Path, name: str, arms: Arms) -> None:
    """Draw accuracy against device-seconds: the mean over the seeds of every arm.

    Arms with fewer seeds than others, which only tune, are grey and have no label.
    """
    figure, axes = pyplot.subplots(figsize=(10, 5))
    most = max(len(group) for group in arms.values())
    # Twenty colours without the two greys.
    colours = itertools.cycle(pyplot.get_cmap("tab20")([n for n in range(20) if n // 2 != 7]))
    for arm, group in arms.items():
        costs = [point.cost.device_seconds for point in group[0].points]
        means = [
            100 * statistics.mean(point.accuracy for point in points)
            for points in zip(*(each.points for each in group), strict=True)
        ]
        style = "--" if group[0].trial.arm.is_scratch else "-"
        if len(group) < most:
            axes.plot(costs, means, style, color="0.8", linewidth=0.8, zorder=1)
        else:
            axes.plot(costs, means, style, marker="o", ms=3, color=next(colours), label=arm)
    lowest = min(each.accuracy for group in arms.values() for each in group)
    axes.set_ylim(bottom=100 * lowest - 20)  # from scratch a curve begins at guessing
    axes.set_title(f"{name}: means of {most} seeds; grey: fewer seeds; dashed: from scratch")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, axes, picture, "device-seconds of training", "test accuracy, %")


def draw_gains(picture: Path, gains: Sequence[Gain]) -> None:
    """Draw the gain in final accuracy against the epochs from scratch, a line for each width."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for width, group in itertools.groupby(gains, key=lambda gain: gain.width):
        same = list(group)
        seeds = sorted({len(gain.points) for gain in same})
        axes.errorbar(
            [gain.epochs for gain in same],
            [statistics.mean(gain.points) for gain in same],
            [statistics.stdev(gain.points) if len(gain.points) > 1 else 0.0 for gain in same],
            marker="o",
            capsize=3,
            label=f"width {width}, n = {' or '.join(map(str, seeds))}",
        )
    epochs = sorted({gain.epochs for gain in gains})
    axes.set_xscale("log", base=2)
    axes.set_xticks(epochs, map(str, epochs))
    axes.axhline(0.0, color="0.5", linewidth=0.8)
    axes.legend()
    _save(figure, axes, picture, "epochs from scratch", "gain in final accuracy, points")


def _save(figure: Any, axes: Any, picture: Path, across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)
