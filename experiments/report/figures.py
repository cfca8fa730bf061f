"""The report's pictures as SVG, whose colours follow the page's: light or dark.

Matplotlib draws with a placeholder for each role of a colour; the page's style sheet says what it
is. Text stays text, in the page's font.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int

matplotlib.use("Agg")
from matplotlib import colors, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.runs import Curve
from experiments.results.units import unit_of

ROLES = {
    "ink": "#010101",
    "muted": "#020202",
    "grid": "#030303",
    "surface": "#040404",
    "subnets": "#050505",
    "dcjax": "#060606",
    "baseline": "#070707",
}
RUNS = [f"#1010{number:02x}" for number in range(8)]
"""The colours of several runs side by side: `--run-0` and so on."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dcjax",  # the same figures give the same file
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": ROLES["muted"],
    "axes.labelcolor": ROLES["ink"],
    "axes.titlecolor": ROLES["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": ROLES["ink"],
    "xtick.color": ROLES["muted"],
    "ytick.color": ROLES["muted"],
    "xtick.labelcolor": ROLES["ink"],
    "ytick.labelcolor": ROLES["ink"],
    "grid.color": ROLES["grid"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
SIZE = (5.0, 3.3)
HEATMAP = "viridis"


def drawn(draw: Callable[[], Figure]) -> str:
    """Return what a function draws as an SVG element."""
    with matplotlib.rc_context(_STYLE):
        figure = draw()
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("DejaVu Sans", "inherit")
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', ' role="img"', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for role, colour in ROLES.items():
        svg = svg.replace(colour, f"var(--{role})")
    for number, colour in enumerate(RUNS):
        svg = svg.replace(colour, f"var(--run-{number})")
    return svg.strip()


def progress(
    curves: tuple[Curve, Curve, Curve],
    bounds: tuple[float | None, float | None],
    target: float | None,
    *,
    loss: bool,
    operations: bool,
) -> Figure:
    """Draw accuracy or loss of every stage on the test split, over seconds or operations.

    Args:
      bounds: of the composed network.
      target: where the baseline ends; None without a baseline.
    """
    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    whole = curves[1]
    place = _places(curves, axes, operations=operations)
    value = _loss if loss else _percent
    colours = ROLES["subnets"], ROLES["dcjax"], ROLES["baseline"]
    for curve, x, colour in zip(curves, place, colours, strict=True):
        y = value(curve.loss if loss else curve.accuracy)
        many = y.shape[1] > 1
        style = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1 if many else 1.8}
        lines = axes.plot(x, y, **style, alpha=0.8 if many else 1)
        lines[0].set_label(curve.name)
        if loss and np.isfinite(curve.training_loss).any():
            mean = curve.training_loss.mean(axis=1)
            axes.plot(x, mean, color=colour, linestyle=":", linewidth=1.2)
    if loss:
        axes.plot([], [], color=ROLES["muted"], linestyle=":", label="training loss, mean")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    low, high = (np.nan if bound is None else bound for bound in bounds)
    low, high = value(np.array([low, high]))
    if np.isfinite([low, high]).all():
        y = value((whole.loss if loss else whole.accuracy)[0, 0])
        error = np.clip([[y - low], [high - y]], 0, None)
        axes.errorbar(
            place[1][:1],
            [y],
            error,
            color=ROLES["ink"],
            capsize=4,
            linewidth=1.2,
            zorder=5,
            label="bounds of the composed network",
        )
    if target is not None and not loss:
        # Room below what matters; a baseline's first epochs may lie beneath.
        axes.set_ylim(bottom=max(0, 100 - 4 * (100 - np.nanmin([low, value(target)]))))
    if target is not None:
        axes.axhline(
            float(value(target)),
            color=ROLES["ink"],
            linestyle="--",
            linewidth=1,
            label="target: the baseline's end",
        )
    axes.set_title("loss on the test split, log scale" if loss else "accuracy on the test split, %")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def compared(runs: Sequence[tuple[str, tuple[Curve, Curve, Curve]]], *, operations: bool) -> Figure:
    """Draw the accuracies of several runs; those of their baselines are dashed."""
    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    every = [curve for _, curves in runs for curve in curves]
    places = iter(_places(every, axes, operations=operations))
    for number, (name, curves) in enumerate(runs):
        colour = RUNS[number % len(RUNS)]
        for curve, style in zip(curves, (None, "-", "--"), strict=True):
            x, y = next(places), _percent(curve.accuracy)
            if style:
                label = name if style == "-" else None
                axes.plot(x, y, style, color=colour, marker="o", markersize=3, label=label)
    axes.set_title("accuracy on the test split, % (baselines dashed)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left")
    return figure


def learned(names: Sequence[str], off: Sequence[float], change: Sequence[float]) -> Figure:
    """Draw for every kernel how large its off-diagonal blocks are, and how its diagonal changed."""
    figure, axes = pyplot.subplots(figsize=(SIZE[0], 1.1 + 0.26 * len(names)), layout="constrained")
    places = np.arange(len(names))
    axes.barh(places - 0.18, off, 0.34, color=ROLES["dcjax"], label="off-diagonal blocks (were 0)")
    axes.barh(places + 0.18, change, 0.34, color=ROLES["subnets"], label="change of the diagonal")
    axes.set_yticks(places, names, fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_title("size relative to the diagonal blocks, %")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def heatmaps(blocks: Sequence[tuple[str, Float[np.ndarray, "3 K K"]]]) -> Figure:
    """Draw the blocks of kernels, before and after fine-tuning, in shares of their largest.

    Shades are those of a root, so that small off-diagonal blocks differ from zero.
    """
    columns = 3
    rows = -(-len(blocks) // columns)
    figure = pyplot.figure(figsize=(SIZE[0], 1.1 * rows), layout="constrained")
    parts = figure.subfigures(rows, columns, squeeze=False).flat
    for (name, sizes), part in zip(blocks, parts, strict=False):
        part.suptitle(name, fontsize=7.5, color=ROLES["ink"], x=0.02, ha="left")
        for axes, size, when in zip(part.subplots(1, 2), sizes, ("before", "after"), strict=False):
            _cells(axes, size, colors.PowerNorm(0.4, 0, float(sizes[:2].max()) or 1))
            axes.set_axis_off()
            axes.set_title(when, fontsize=7, loc="center")
    return figure


def confusion(counts: Int[np.ndarray, "C C"], classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix in shares of each class; with counts if there are few classes."""
    count = len(classes)
    side = min(5.0, 1.6 + 0.34 * count)
    figure, axes = pyplot.subplots(figsize=(side + 0.4, side), layout="constrained")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    _cells(axes, shares, colors.Normalize(0, 1))
    if count <= 12:
        axes.set_xticks(range(count), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(count), classes, fontsize=8)
        for (row, column), number in np.ndenumerate(counts):
            if number:
                dark = shares[row, column] < 0.6
                colour = "white" if dark else "black"
                axes.text(
                    column, row, str(number), ha="center", va="center", fontsize=7, color=colour
                )
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    axes.set_title(title)
    return figure


def _cells(axes: Axes, values: np.ndarray, norm: colors.Normalize) -> None:
    """Draw a matrix as squares, the first row above; as a picture if it is large."""
    axes.grid(visible=False)
    if values.size > 1000:
        axes.imshow(values, interpolation="nearest", norm=norm, cmap=HEATMAP)
    else:
        axes.pcolormesh(
            np.arange(values.shape[1] + 1) - 0.5,
            np.arange(values.shape[0] + 1) - 0.5,
            values,
            edgecolors=ROLES["surface"],
            linewidth=0.6,
            norm=norm,
            cmap=HEATMAP,
        )
        axes.invert_yaxis()
        axes.set_aspect("equal")


def _places(
    curves: Sequence[Curve], axes: Axes, *, operations: bool
) -> list[Float[np.ndarray, " n"]]:
    """Return the curves' places on the horizontal axis, and name it."""
    if not operations:
        axes.set_xlabel("seconds of training")
        return [curve.seconds for curve in curves]
    unit, size = unit_of(max(np.nanmax(curve.operations) for curve in curves))
    axes.set_xlabel(f"operations of training, {unit}")
    return [curve.operations / size for curve in curves]


def _percent(fraction: np.ndarray | float) -> np.ndarray:
    return 100 * np.asarray(fraction, float)


def _loss(loss: np.ndarray | float) -> np.ndarray:
    return np.asarray(loss, float)
