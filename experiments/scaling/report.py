"""Tables and the picture of docs/scaling.md, from measured steps and the study's records."""

import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from experiments import markdown
from experiments.scaling import model
from experiments.scaling.model import Cost
from experiments.scaling.worker import APART, AVERAGE, GATHER, KINDS, SUBNET, TOGETHER

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "dcjax"  # the same figures give the same file
from matplotlib import pyplot  # noqa: E402

RATES = (0, 10_000, 1000, 100)
HOP = 50e-6  # seconds that a message takes from one device to the next, assumed
REDUCES = 14  # in a data-parallel step of ResNet-8, counted in its compiled program
MEGABYTE = 1e6
_RECORDS = {32: ("cifar10", 0.8), 64: ("cifar10-wide", 0.4)}
"""By width the study whose records give the epochs, and the sub-networks' rate in it."""


class Rival(NamedTuple):
    """A way to train, and what it costs up to the baseline's accuracy on four devices.

    Attributes:
      epochs: how many that takes, in words; of which `record` is the source.
      reaches: False if it ends below that accuracy; the cost is then of all its epochs.
    """

    name: str
    epochs: str
    record: str
    cost: Cost
    reaches: bool = True


def write(records: Path, output: Path) -> None:
    """Write the tables into the document, and the picture beside it."""
    measured = json.loads(records.read_text())
    widths = sorted({each["width"] for each in measured})
    rivals = {width: [*_rivals(measured, width, records.parent)] for width in widths}
    text = output.read_text()
    text = markdown.put(text, "steps", steps_table(measured))
    text = markdown.put(text, "check", check_table(measured))
    for width in widths:
        text = markdown.put(text, f"runs-{width}", runs_table(rivals[width]))
    text = markdown.put(text, "devices", devices_table(model.costs(measured, max(widths))))
    markdown.write(output, text)
    draw(output.with_name("scaling.svg"), rivals)


def steps_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Return what each kind of step sends and computes."""
    widths = sorted({each["width"] for each in measured})
    head = ["", *(f"width {width}: {what}" for width in widths for what in ("sent", "processor"))]
    step = {width: model.costs(measured, width) for width in widths}
    body = []
    for kind in KINDS:
        costs = [step[width][kind] for width in widths]
        cells = [(f"{_megabytes(each.bytes)} MB", f"{each.seconds:.3f} s") for each in costs]
        body.append([kind, *itertools.chain.from_iterable(cells)])
    return markdown.table(head, body)


def check_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Return the seconds of an average beside the model's, which knows nothing of other work."""
    head = ["width", "link", "fastest", "median", "model", "fastest / model", "median / model"]
    body = []
    for each in measured:
        if not each["rate"] or each["processes"] != 2:
            continue
        cost = model.costs(measured, each["width"])[AVERAGE]
        seconds, said = each["kinds"][AVERAGE]["seconds"], cost.over(each["rate"])
        fastest, usual = min(seconds), statistics.median(seconds)
        cells = [f"{s:.3f} s" for s in (fastest, usual, said)]
        ratios = [f"{s / said:.2f}" for s in (fastest, usual)]
        body.append([str(each["width"]), _speed(each["rate"]), *cells, *ratios])
    return markdown.table(head, body)


def _rivals(measured: Sequence[Mapping[str, Any]], width: int, records: Path) -> Iterator[Rival]:
    """Yield the ways to train, with the epochs that the study's records give them."""
    step = model.costs(measured, width)
    name, rate = _RECORDS[width]
    known = _read(records / f"{name}.json")
    scratch = [known[f"scratch-longer-warm-up-6-rate-0.8-seed{seed}"] for seed in range(3)]
    targets = [each["baseline"]["accuracy"] for each in scratch]
    yield Rival("from scratch, data-parallel", "6", name, model.global_network(step, 6))
    tuned = [known[f"averaged-8+2-rate-{rate}-seed{seed}"]["finetune"] for seed in range(3)]
    last = statistics.mean(map(model.epochs_to, [each["curve"] for each in tuned], targets))
    called = "dcjax, fine-tuned data-parallel" if last else "dcjax, composed"
    yield Rival(called, f"8 + {last:.2g}", name, model.transfer(step, (8, last)))
    if width == 64:
        cost = model.global_network(step, 6, 50)
        yield Rival("from scratch, averaged every 50 steps", "6 or more", "none", cost, False)
        return
    yield from _rarely(step, records / "cifar10-rarely.json", targets[0])


def _rarely(step: Mapping[str, Cost], records: Path, target: float) -> Iterator[Rival]:
    """Yield the trainings whose copies are averaged rarely, with seed 0."""
    for kept in json.loads(records.read_text()).values():
        settings, results = kept["settings"], kept["results"]
        is_scratch = settings["baseline_epochs"] > 0
        stage = results["baseline" if is_scratch else "finetune"]
        reached = model.epochs_to(stage["curve"], target)
        epochs = reached if reached < math.inf else stage["epochs"]
        every = settings["baseline_average_every" if is_scratch else "average_every"]
        times = every or sys.maxsize
        if is_scratch:
            cost = model.global_network(step, epochs, times)
            words, rate = f"{epochs}", settings["learning_rate"]
        else:
            cost = model.transfer(step, (8, epochs), times)
            words, rate = f"8 + {epochs}", settings["finetune_rate"] or settings["learning_rate"]
        if reached == math.inf:
            words += f", ends at {100 * stage['accuracy']:.1f} %"
        how = "DiLoCo" if settings["outer_rate"] else "averaged"
        when = f"every {every} steps" if every else "once"
        start = "from scratch" if is_scratch else "dcjax"
        name = f"{start}, {how} {when}, rate {rate}"
        yield Rival(name, words, "cifar10-rarely", cost, reached < math.inf)


def runs_table(rivals: Sequence[Rival]) -> str:
    """Return what the trainings send and take, up to the baseline's accuracy."""
    head = ["training", "epochs", "record", "sent by a device"]
    head += [f"{_speed(rate)}, s" for rate in RATES]
    body = []
    for rival in rivals:
        more = "" if rival.reaches else "> "
        cells = [f"{more}{rival.cost.over(rate):.0f}" for rate in RATES]
        sent = f"{more}{rival.cost.bytes / MEGABYTE:.1f} MB"
        body.append([rival.name, rival.epochs, rival.record, sent, *cells])
    return markdown.table(head, body)


def devices_table(step: Mapping[str, Cost], rate: int = 1000) -> str:
    """Return the seconds on more devices, each with as many images as one of four."""
    counts = (4, 8, 64, 1024)

    def hops(devices: float) -> float:
        return 2 * (devices - 1) * HOP

    def shared(each: Cost, devices: float) -> float:
        """Return the seconds of a step that so many devices share."""
        cost = each._replace(bytes=model.ring(devices) * each.bytes)
        return cost.over(rate) + REDUCES * hops(devices)

    def averaged(devices: int) -> float:
        mean = step[AVERAGE]
        cost = mean._replace(bytes=model.ring(devices) * mean.bytes)
        rounds = math.ceil(6 * model.STEPS / 50)
        return 6 * model.STEPS * step[APART].seconds + rounds * (cost.over(rate) + hops(devices))

    narrow = step[SUBNET]._replace(bytes=step[GATHER].bytes / 2)  # two of them are sent there
    gathered = step[GATHER].over(rate)
    rows = {
        "from scratch, data-parallel": lambda d: 6 * model.STEPS * shared(step[TOGETHER], d),
        "from scratch, averaged every 50 steps": averaged,
        "dcjax, four devices train the sub-networks": lambda d: (
            8 * model.STEPS * step[SUBNET].seconds * d / 4 + gathered
        ),
        "dcjax, a quarter of the devices for each sub-network": lambda d: (
            8 * model.STEPS * shared(narrow, d / 4) + gathered
        ),
    }
    body = [[name, *(f"{seconds(d):.0f}" for d in counts)] for name, seconds in rows.items()]
    return markdown.table(["training", *(f"{d} devices, s" for d in counts)], body)


def draw(picture: Path, rivals: Mapping[int, Sequence[Rival]]) -> None:
    """Draw the seconds to the baseline's accuracy against the speed of the links."""
    figure, panels = pyplot.subplots(1, len(rivals), figsize=(5.5 * len(rivals), 4.8), sharey=True)
    speeds = np.geomspace(10, 100_000, 60)
    for axes, (width, each) in zip(np.ravel(panels), rivals.items(), strict=True):
        for rival in each:
            seconds = [rival.cost.over(speed) for speed in speeds]
            line = "-" if rival.reaches else "--"
            axes.plot(speeds, seconds, line, label=f"{rival.name}: {rival.epochs}")
        axes.set_title(f"ResNet-8 of width {width}, four devices")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("speed of each link, Mbit/s")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", title="training: epochs", title_fontsize="x-small")
    np.ravel(panels)[0].set_ylabel("seconds to the baseline's accuracy; dashed: not reached")
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)


def _megabytes(count: float) -> str:
    """Return megabytes; a few bytes are those of JAX's heartbeats.

    >>> _megabytes(210), _megabytes(4_929_002)
    ('0', '4.93')
    """
    return "0" if count < 1000 else f"{count / MEGABYTE:.2f}"


def _speed(rate: int) -> str:
    """Return a link's speed in words.

    >>> _speed(0), _speed(100), _speed(10_000)
    ('no limit', '100 Mbit/s', '10 Gbit/s')
    """
    if not rate:
        return "no limit"
    return f"{rate} Mbit/s" if rate < 1000 else f"{rate // 1000} Gbit/s"


def _read(records: Path) -> dict[str, Any]:
    """Return the results of a study's trials by their names; {} if it was not run."""
    if not records.is_file():
        return {}
    return {name: kept["results"] for name, kept in json.loads(records.read_text()).items()}
