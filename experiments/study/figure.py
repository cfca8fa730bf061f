"""The study's pictures, as SVG: accuracy against cost."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from experiments.study.outcomes import Outcome, by_arm

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
