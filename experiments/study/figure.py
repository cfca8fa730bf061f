"""The study's pictures, as SVG: accuracy against cost, and the gain against the length."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from experiments.study.outcomes import Length, Outcome, by_arm

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "dcjax"  # the same figures give the same file
from matplotlib import pyplot  # noqa: E402


def draw_curves(picture: Path, name: str, found: Sequence[Outcome]) -> None:
    """Draw accuracy against device-seconds: the means of the arms that have all seeds.

    Arms with fewer seeds than others only tune.
    """
    arms = by_arm(found)
    most = max(map(len, arms.values()))
    figure, axes = pyplot.subplots(figsize=(10, 5))
    axes.set_prop_cycle(color=pyplot.get_cmap("tab20")(range(20)))
    for arm, group in arms.items():
        if len(group) == most:
            means = 100 * np.mean([each.accuracies for each in group], axis=0)
            style = "--" if group[0].trial.arm.is_scratch else "-"
            axes.plot(group[0].costs[:, 0], means, style, marker="o", ms=3, label=arm)
    # From scratch a curve begins at guessing, far below all others.
    axes.set_ylim(bottom=100 * min(each.accuracy for each in found) - 20)
    axes.set_title(f"{name}: means of {most} seeds; dashed: from scratch")
    axes.set_xlabel("device-seconds of training")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)


def draw_lengths(picture: Path, compared: Sequence[Length]) -> None:
    """Draw gain and time to the baseline's accuracy against the epochs from scratch."""
    figure, (above, below) = pyplot.subplots(2, sharex=True, figsize=(7, 6))
    for width, group in itertools.groupby(compared, key=lambda each: each.width):
        same = list(group)
        epochs, seeds = [each.epochs for each in same], {len(each.gains) for each in same}
        label = f"width {width}, seeds: {', '.join(map(str, sorted(seeds)))}"
        gains = [100 * np.mean(each.gains) for each in same]
        spread = [100 * np.std(each.gains, ddof=min(1, len(each.gains) - 1)) for each in same]
        above.errorbar(epochs, gains, spread, marker="o", capsize=3, label=label)
        reached = [each for each in same if len(each.ratios) == len(each.gains)]
        ratios = [np.mean(each.ratios) for each in reached]
        below.plot([each.epochs for each in reached], ratios, marker="o")
    above.axhline(0.0, color="0.5", linewidth=0.8)
    above.set_ylabel("gain in final accuracy, points")
    above.set_title("as many operations as training from scratch")
    above.legend()
    below.axhline(1.0, color="0.5", linewidth=0.8)
    below.set_ylabel("operations to the accuracy\nfrom scratch: times fewer")
    below.set_xlabel("epochs from scratch")
    below.set_xscale("log", base=2)
    ticks = sorted({each.epochs for each in compared})
    below.set_xticks(ticks, map(str, ticks))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)
