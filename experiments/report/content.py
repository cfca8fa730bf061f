"""The sections of a report, in order: text, tables and pictures."""

import base64
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from experiments.report import figures
from experiments.report.evidence import Evidence
from experiments.report.runs import Curve, Run, curves
from experiments.results import summary
from experiments.results.units import counted, nats, operations, percent

SHOWN_KERNELS = 12
SHOWN_SUBNETS = 8
NO_EVIDENCE = (
    "This run left no pictures of kernels, samples and answers: report.npz is missing, which a run "
    "writes when it ends."
)


class Table(NamedTuple):
    """A table; a cell is text, or a `Picture`. `folded` if the page shows it on demand only."""

    head: Sequence[str]
    rows: Sequence[Sequence["str | Picture"]]
    folded: bool = False


class Picture(NamedTuple):
    """A picture as HTML (an SVG or an image), with the words that stand for it.

    Attributes:
      pixels: whether it is an image of few pixels, with a word beneath it.
    """

    html: str
    words: str
    pixels: bool = False


class Section(NamedTuple):
    """A section: a title, sentences, tables, and pictures side by side."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def of_run(run: Run) -> list[Section]:
    """Return the sections of a run's report."""
    found = run.evidence
    sections = [_outcome(run), _curves(run), _bounds(run)]
    if found is None:
        nothing = Section("Kernels, samples, answers", [NO_EVIDENCE])
        return [*sections, nothing, _settings([run])]
    return [*sections, _blocks(found), _samples(found), _confusion(found), _settings([run])]


def of_runs(runs: Sequence[Run]) -> list[Section]:
    """Return the sections of a comparison of several runs."""
    names = [run.folder.name for run in runs]
    both = [(name, curves(run)) for name, run in zip(names, runs, strict=True)]
    pictures = [
        Picture(figures.drawn(lambda by=by: figures.compared(both, operations=by)), words)
        for by, words in ((False, "accuracy over seconds"), (True, "accuracy over operations"))
        if not by or _has_operations([each for _, each in both])
    ]
    rows = [_row(run) for run in runs]
    return [
        Section("Results", [], [Table(list(rows[0]), [list(row.values()) for row in rows])]),
        Section("Accuracy", [], [], pictures),
        _settings(runs),
    ]


def heading(run: Run) -> str:
    """Return the run in one line: data, networks."""
    model, subnets = run.results["model"], run.results["subnets"]
    kinds = {"resnet": f"ResNet-{model['depth']}", "cnn": f"CNN-{model['depth']}"}
    kind = kinds.get(model["name"], model["name"])
    return (
        f"{run.results['dataset']}: {counted(subnets, 'sub-network')} of width "
        f"{model['width'] // subnets} in a {kind} of width {model['width']}"
    )


def _row(run: Run) -> dict[str, str]:
    """Return a run's row in a comparison."""
    results = run.results
    gain, baseline = results["speedup"]["wall"], results["baseline"]
    row = {
        "run": run.folder.name,
        "data": results["dataset"],
        "K": str(results["subnets"]),
        "width": str(results["model"]["width"]),
        "sub-networks, mean": percent(float(np.mean(results["subnets_phase"]["accuracy"]))),
        "composed": percent(results["composed"]["accuracy"]),
        "fine-tuned": percent(results["finetune"]["accuracy"]),
        "baseline": percent(baseline["accuracy"]) if baseline["epochs"] else "none",
        "to the baseline's accuracy": "not reached" if gain is None else summary.times(gain),
    }
    if each := results.get("operations_per_epoch"):
        own = results["subnets_phase"]["epochs"] * each["subnets"]
        row["operations"] = operations(own + results["finetune"]["epochs"] * each["global"])
    return row


def _outcome(run: Run) -> Section:
    head, rows = summary.table(summary.rows(run.results))
    said = [summary.verdict(run.results), summary.comparison(run.results)]
    return Section("Outcome", [line for line in said if line], [Table(head, rows)])


def _curves(run: Run) -> Section:
    found, results = curves(run), run.results
    bounds = results["composed"]
    trained = results["baseline"]["epochs"] > 0
    pictures = []
    for loss in (False, True):
        limits = (
            (bounds["cost_lower"], bounds["cost_upper"])
            if loss
            else (bounds["accuracy_lower"], bounds["accuracy_upper"])
        )
        end = results["baseline"]["cost"] if loss else results["baseline"]["accuracy"]
        target = end if trained else None
        for by in (False, True) if _has_operations([found]) else (False,):

            def draw(by: bool = by, loss: bool = loss, limits=limits, target=target):
                return figures.progress(found, limits, target, loss=loss, operations=by)

            over = "operations" if by else "seconds"
            pictures.append(
                Picture(figures.drawn(draw), f"{'loss' if loss else 'accuracy'} over {over}")
            )
    text = [
        "Sub-networks, then the network composed of them, then its fine-tuning; the baseline "
        "begins anew at zero. Seconds are those of training, without compiling and evaluating."
    ]
    return Section("Accuracy and loss", text, [], pictures)


def _bounds(run: Run) -> Section:
    composed = run.results["composed"]
    accuracies = [composed[name] for name in ("accuracy_lower", "accuracy", "accuracy_upper")]
    costs = [composed[name] for name in ("cost_lower", "cost", "cost_upper")]
    rows = [["accuracy", *map(percent, accuracies)], ["loss", *map(nats, costs)]]
    text = [
        "The sub-networks' answers to the test images bound the composed network before any "
        "fine-tuning.",
        summary.exactness(composed["feature_error"]),
    ]
    table = Table(["composed network", "at least", "measured", "at most"], rows)
    return Section("Bounds and measured values", text, [table])


def _blocks(found: Evidence) -> Section:
    sizes = list(found.blocks.items())
    if not sizes:
        return Section("Kernels", ["This network has no kernel with off-diagonal blocks."])
    names = [name.removeprefix("params/").removesuffix("/kernel") for name, _ in sizes]
    rows = []
    for name, (_, size) in zip(names, sizes, strict=True):
        diagonal, off = _parts(size)
        rows.append((name, off[0] / diagonal[0], off[1] / diagonal[1], diagonal[2] / diagonal[0]))
    step = -(-len(sizes) // SHOWN_KERNELS)
    shown = [(name, size) for name, (_, size) in zip(names, sizes, strict=True)][::step]
    columns = list(zip(*rows, strict=True))
    pictures = [
        Picture(
            figures.drawn(
                lambda: figures.learned(
                    names, [100 * x for x in columns[2]], [100 * x for x in columns[3]]
                )
            ),
            "what each kernel has learned in fine-tuning",
        ),
        Picture(
            figures.drawn(lambda: figures.heatmaps(shown)),
            "blocks of kernels before and after fine-tuning",
        ),
    ]
    text = [
        "Root mean squares of the weights from sub-network i's channels (rows) to sub-network j's "
        "(columns), relative to the diagonal blocks. The off-diagonal blocks connect sub-networks: "
        f"composition leaves at most {percent(max(columns[1]))} in them, "
        "fine-tuning fills them."
    ]
    head = ["kernel", "off-diagonal, after", "change of the diagonal"]
    body = [[name, percent(after), percent(change)] for name, _, after, change in rows]
    return Section("What the kernels have learned", text, [Table(head, body, True)], pictures)


def _parts(
    sizes: Float[np.ndarray, "n K K"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return the root mean squares of the diagonal blocks and of the off-diagonal ones."""
    eye = np.eye(sizes.shape[-1], dtype=bool)
    return tuple(np.sqrt((sizes**2)[:, mask].mean(axis=1)) for mask in (eye, ~eye))  # type: ignore


def _samples(found: Evidence) -> Section:
    named = [found.classes[label] for label in found.labels]
    rows: list[list[str | Picture]] = [
        ["the image", *itertools.starmap(_picture, zip(found.images, named, strict=True))]
    ]
    for k, (views, said) in enumerate(zip(found.views, found.said, strict=True)):
        if k == SHOWN_SUBNETS:
            break
        answers = [
            ("✓ " if answer == label else "✗ ") + found.classes[answer]
            for answer, label in zip(said, found.labels, strict=True)
        ]
        seen = zip(_shown(views), answers, strict=True)
        rows.append([f"sub-network {k}", *itertools.starmap(_picture, seen)])
    text = ["Each sub-network's part of an image, and its answer."]
    head = ["", *(f"image {n}" for n in range(len(named)))]
    return Section("Samples", text, [Table(head, rows)])


def _shown(views: Float[np.ndarray, "n h w d"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Return views as pictures, from their smallest value to their largest."""
    if views.shape[-1] != 3:
        views = views.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    low, high = views.min(), views.max()
    return np.round(255 * (views - low) / max(high - low, 1e-12)).astype(np.uint8)


def _picture(image: UInt8[np.ndarray, "h w 3"], words: str) -> Picture:
    file = io.BytesIO()
    if image.shape[-1] == 1:
        image = image.repeat(3, axis=-1)
    figures.pyplot.imsave(file, image, format="png", metadata={"Software": None})
    data = base64.b64encode(file.getvalue()).decode()
    html = f'<img alt="" src="data:image/png;base64,{data}">'
    return Picture(html, words, pixels=True)


def _confusion(found: Evidence) -> Section:
    pictures, rows = [], []
    for name, counts in found.confusion.items():
        drawn = figures.drawn(
            lambda counts=counts, name=name: figures.confusion(counts, found.classes, name)
        )
        pictures.append(Picture(drawn, f"confusion matrix, {name}"))
        rows += [[name, *line] for line in _confused(counts, found.classes)]
    text = ["Test images by class (rows) and answer (columns)."]
    tables = [Table(["network", "class", "taken for", "images"], rows)] if rows else []
    return Section("Answers", text, tables, pictures)


def _confused(
    counts: np.ndarray, classes: tuple[str, ...], most: int = 3
) -> Iterator[tuple[str, str, str]]:
    """Yield the most frequent mistakes: class, answer, how many images of the class."""
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    for place in np.argsort(wrong, axis=None)[::-1][:most]:
        row, column = np.unravel_index(place, wrong.shape)
        if wrong[row, column]:
            of = f"{wrong[row, column]} of {counts[row].sum()}"
            yield classes[row], classes[column], of


def _settings(runs: Sequence[Run]) -> Section:
    """Return the settings: of one run all, of several those in which they differ."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = [[name, *(str(run.settings.get(name, "")) for run in runs)] for name in names]
    if len(runs) > 1:
        rows = [row for row in rows if len(set(row[1:])) > 1 and row[0] != "workdir"]
    head = (
        ["setting", *(run.folder.name for run in runs)] if len(runs) > 1 else ["setting", "value"]
    )
    versions = [
        f"{run.folder.name}: "
        + ", ".join(f"{name} {value}" for name, value in run.results["versions"].items())
        + f"; {run.results['devices'].get('processor') or run.results['devices'].get('kind')}"
        for run in runs
    ]
    return Section("Settings", versions, [Table(head, rows, folded=len(runs) == 1)])


def _has_operations(found: Sequence[tuple[Curve, Curve, Curve]]) -> bool:
    return all(np.isfinite(curve.operations).all() for three in found for curve in three)
