"""The settings of a study: frozen dataclasses, the presets, and what is wrong with a choice.

Nothing here imports JAX: a mistake on the command line is answered before JAX starts.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import data
from experiments.settings import fits
from experiments.settings.fits import SAMPLES

MODELS = ("resnet", "cnn")
PRECISIONS = ("auto", "float32", "bfloat16")
ON_DIVERGED = ("stop", "restart", "drop")


@dataclasses.dataclass(frozen=True)
class Network:
    """The global network, and what its sub-networks see."""

    model: Annotated[str, tyro.conf.arg(metavar="{resnet,cnn}")] = "resnet"
    """The architecture."""
    depth: int = 8
    """Layers with weights: 6n+2 for a resnet (8, 14, 20, …), 3n+2 for a cnn (5, 8, 11, …)."""
    width: int = 32
    """Channels of the global network's first stage; every sub-network has width / subnets."""
    samples: Annotated[str, tyro.conf.arg(metavar="{replicate,channels,tiles,phases,bands}")] = (
        "replicate"
    )
    """What each sub-network sees of an image."""
    precision: Annotated[str, tyro.conf.arg(metavar="{auto,float32,bfloat16}")] = "auto"
    """Arithmetic of training; auto is bfloat16 on an accelerator and float32 on the CPU. Parameters
    and evaluation are float32 always."""
    native: bool = True
    """On the CPU, convolutions compiled for its processor, which takes a C++ compiler once; without
    one they are JAX's own, with a notice."""


@dataclasses.dataclass(frozen=True)
class Training:
    """The three phases: stochastic gradient descent with momentum, cosine decay."""

    subnet_epochs: int = 8
    """Epochs of the sub-networks."""
    finetune_epochs: int = 2
    """Epochs of the composed network."""
    baseline_epochs: int = 6
    """Epochs of the global network trained from scratch, for comparison."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 0.8
    """Peak learning rate of the sub-networks and of the baseline. The quick preset's is the best at
    its width, 32; at width 64 0.4 is better for the sub-networks (docs/results.md)."""
    finetune_rate: float | None = None
    """Peak learning rate of fine-tuning; by default the --learning-rate."""
    warmup_epochs: float = 0.5
    """Epochs of linear warm-up at the start of the sub-networks, at most half of the phase."""
    baseline_warmup_epochs: float = 1.5
    """The same of the baseline, which needs a longer one than narrow networks (docs/results.md)."""
    weight_decay: float = 5e-4
    """Weight decay of the kernels."""
    label_smoothing: float = 0.0
    """The part of a label that is spread over all classes, in all phases."""
    evaluate_every: int | None = None
    """Steps between measurements of the global network, at which the time to an accuracy is read
    off; by default there is one at the end of every epoch. On accelerators each step is a call of
    its own then."""
    average: float = 0.95
    """In all phases, measure and hand on the weights' average over about 1 / (1 - this) steps
    instead of the last weights: 0.95 for about 20 steps; 0 for none."""


@dataclasses.dataclass(frozen=True)
class Transfer:
    """How the training of the sub-networks goes over into that of the global network."""

    subnet_final_rate: float | None = None
    """The rate at which the sub-networks end. By default that at which fine-tuning begins: one
    schedule goes through both phases and anneals once, in fine-tuning. 0 anneals them too."""
    finetune_warmup_epochs: float = 0.0
    """Epochs of linear warm-up at the start of fine-tuning, at most half of it."""
    carry_momentum: bool = True
    """Fine-tuning goes on with the sub-networks' momenta; without it, it starts from none."""
    head_rate: float | None = None
    """Factor of the fine-tuning rate for the head's kernel; by default 4/K above four
    sub-networks, which keeps what a step does to the logits within bounds."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The images."""

    dataset: str = "auto"
    """cifar10, digits, folder:PATH (train/<class>/*.jpg, test/<class>/*.jpg), or auto: cifar10, and
    digits in its place where it cannot be had and no --data-dir says where it is. In training all
    but digits are shifted and mirrored at random."""
    data_dir: Path | None = None
    """Where tensorflow-datasets keeps its data; by default TFDS_DATA_DIR, or its own place."""
    train_size: int | None = 10_000
    """Train on at most so many images, a seeded and class-balanced subset; None for all."""


@dataclasses.dataclass(frozen=True)
class Keeping:
    """What is kept on the disk, and what happens if something goes wrong."""

    checkpoint_every: int | None = None
    """Steps between checkpoints; by default one at the end of every epoch. Saving within an epoch
    counts as its time."""
    keep: int = 2
    """So many of the newest checkpoints of each phase are kept."""
    only_subnet: int | None = None
    """Train just this sub-network (from 0 on); the command without it collects those that are
    trained, and trains what is missing."""
    on_diverged: Annotated[str, tyro.conf.arg(metavar="{stop,restart,drop}")] = "stop"
    """If a sub-network's loss is no number any more: stop; restart it from its last good checkpoint
    with another random key and half the rate; or drop it, the head's mean over the others."""
    fresh: bool = False
    """Delete what an earlier run has left in the workdir, and start anew."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train K sub-networks side by side, compose them, fine-tune; compare with a baseline."""

    subnets: int = 4
    """K, the number of sub-networks; divides the width."""
    seed: int = 0
    """Seed of everything random."""
    preset: Annotated[str, tyro.conf.arg(metavar="{quick,digits,paper}")] = "quick"
    """Where the other flags' defaults come from: quick (CIFAR-10, minutes on two CPU cores), digits
    (the method on 1,400 small images: no network needed, two minutes) or paper (ResNet-32 of width
    64, 160 epochs: for GPUs)."""
    workdir: Path | None = None
    """Folder for the results; by default one below runs/, named after the settings."""
    network: Network = Network()
    training: Training = Training()
    transfer: Transfer = Transfer()
    data: Data = Data()
    keeping: Keeping = Keeping()

    @property
    def finetune_rate(self) -> float:
        """The peak rate of fine-tuning."""
        own = self.training.finetune_rate
        return self.training.learning_rate if own is None else own

    @property
    def head_rate(self) -> float:
        """The factor of fine-tuning's rate for the head's kernel.

        >>> Settings(subnets=4).head_rate, Settings(subnets=8).head_rate
        (1.0, 0.5)
        """
        own = self.transfer.head_rate
        return min(1.0, 4 / self.subnets) if own is None else own

    @property
    def subnet_final_rate(self) -> float:
        """The rate at which the sub-networks end.

        >>> Settings(training=Training(learning_rate=0.1)).subnet_final_rate
        0.1
        """
        own = self.transfer.subnet_final_rate
        return min(self.training.learning_rate, self.finetune_rate) if own is None else own


# The paper's network (ResNet-32, four sub-networks of width 16) and the usual recipe for it. How
# the epochs were shared out is not in the abstracts: half as many for fine-tuning is our choice. So
# are two schedules: what the study has found for few epochs says nothing of many.
PAPER = Settings(
    preset="paper",
    network=Network(depth=32, width=64),
    training=Training(
        subnet_epochs=160,
        finetune_epochs=80,
        baseline_epochs=160,
        batch_size=128,
        learning_rate=0.1,
        finetune_rate=0.05,
        warmup_epochs=1.0,
        baseline_warmup_epochs=1.0,
        weight_decay=1e-4,
        average=0.0,
    ),
    transfer=Transfer(subnet_final_rate=0.0, finetune_warmup_epochs=0.5, carry_momentum=False),
    data=Data(train_size=None),
)
# As quick, for fewer images: smaller batches, so that an epoch has enough steps.
DIGITS = Settings(
    preset="digits",
    training=Training(
        subnet_epochs=8,
        finetune_epochs=4,
        baseline_epochs=12,
        batch_size=32,
        learning_rate=0.1,
        baseline_warmup_epochs=0.5,
    ),
    data=Data(dataset="digits", train_size=None),
)
PRESETS = {"quick": Settings(), "digits": DIGITS, "paper": PAPER}

# Where a run reads and writes changes no result, nor does the preset's name beside its values. What
# is done with a sub-network that diverges is said in the results.
PLACES = ("workdir", "data_dir", "preset", *(f.name for f in dataclasses.fields(Keeping)))


def flat(settings: Settings) -> dict[str, Any]:
    """The settings as one dict by their flags' names, of plain values that JSON can hold.

    >>> flat(Settings(subnets=2))["subnets"], flat(Settings())["width"]
    (2, 32)
    """
    nested = dataclasses.asdict(settings)
    groups = {name for name, value in nested.items() if isinstance(value, dict)}
    flags = {name: value for name, value in nested.items() if name not in groups}
    for group in sorted(groups):
        flags |= nested[group]
    return {name: str(v) if isinstance(v, Path) else v for name, v in flags.items()}


def problems(settings: Settings) -> list[str]:
    """Everything that is wrong with the settings, a line each; empty if they can be run.

    >>> problems(Settings())
    []
    >>> print(*problems(Settings(subnets=3)))
    --subnets 3: the width 32 is not divisible by 3; divisors of 32: 1, 2, 4, 8, 16, 32
    """
    found = [*_wrong_numbers(flat(settings)), *_unknown_names(settings)]
    return found or [*_misfits(settings)]


def unknown(kind: str, name: str, known: tuple[str, ...]) -> str:
    """What to say of a name that is none of the known ones; suggests the nearest.

    >>> print(unknown("preset", "papr", ("quick", "paper")))
    unknown preset 'papr': did you mean 'paper'? Choose from quick, paper
    """
    near = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {near[0]!r}? Choose" if near else ": choose"
    return f"unknown {kind} {name!r}{hint} from {', '.join(known)}"


_AT_LEAST = {
    "subnets": 1,
    "width": 1,
    "depth": 1,
    "batch_size": 1,
    "train_size": 1,
    "checkpoint_every": 1,
    "evaluate_every": 1,
    "keep": 1,
    "only_subnet": 0,
    "seed": 0,
    "subnet_epochs": 0,
    "finetune_epochs": 0,
    "baseline_epochs": 0,
    "warmup_epochs": 0,
    "baseline_warmup_epochs": 0,
    "weight_decay": 0,
    "label_smoothing": 0,
    "average": 0,
    "subnet_final_rate": 0,
    "finetune_warmup_epochs": 0,
    "head_rate": 0,
}
_ABOVE_ZERO = ("learning_rate", "finetune_rate")


def _wrong_numbers(flags: dict[str, Any]) -> Iterator[str]:
    """The numbers outside their ranges, nan and infinity among them."""
    for name, least in _AT_LEAST.items():
        value = flags[name]
        if value is not None and not least <= value < math.inf:
            kind = "whole number" if isinstance(value, int) else "finite number"
            yield f"{as_flag(name)} {value}: expected a {kind} of at least {least}"
    for name in _ABOVE_ZERO:
        if flags[name] is not None and not 0 < flags[name] < math.inf:
            yield f"{as_flag(name)} {flags[name]}: expected a finite number above 0"


def _unknown_names(settings: Settings) -> Iterator[str]:
    """The names that stand for nothing."""
    network = settings.network
    chosen = (
        ("preset", settings.preset, tuple(PRESETS)),
        ("model", network.model, MODELS),
        ("samples", network.samples, tuple(SAMPLES)),
        ("precision", network.precision, PRECISIONS),
        ("--on-diverged", settings.keeping.on_diverged, ON_DIVERGED),
    )
    for kind, name, known in chosen:
        if name not in known:
            yield unknown(kind, name, known)
    try:
        data.check_name(settings.data.dataset)
    except data.DataError as error:
        yield str(error)


def _misfits(settings: Settings) -> Iterator[str]:
    """The choices that are right by themselves and do not go together."""
    subnets, network, data = settings.subnets, settings.network, settings.data
    only = settings.keeping.only_subnet
    if only is not None and only >= subnets:
        yield f"--only-subnet {only}: expected one from 0 to {subnets - 1}, of --subnets {subnets}"
    if network.width % subnets:
        divisors = ", ".join(str(d) for d in range(1, network.width + 1) if network.width % d == 0)
        yield (
            f"--subnets {subnets}: the width {network.width} is not divisible by {subnets}; "
            f"divisors of {network.width}: {divisors}"
        )
    if network.depth not in (depths := _depths(network.model)):
        near = min(depths, key=lambda depth: abs(depth - network.depth))
        yield (
            f"--depth {network.depth}: a {network.model} has {depths.step}n+2 layers, that is "
            f"{', '.join(map(str, depths[:4]))}, …; the nearest is {near}"
        )
    yield from _misfit_transfer(settings)
    if data.train_size is not None:
        yield from _unfilled_batch(settings.training.batch_size, data.train_size)
    if not data.dataset.startswith("folder:"):  # the size of a folder's images: once they are read
        yield from _misfit_images(settings, fits.Image())


def _misfit_transfer(settings: Settings) -> Iterator[str]:
    chosen, transfer = settings.training, settings.transfer
    if settings.subnet_final_rate > chosen.learning_rate:
        yield (
            f"--subnet-final-rate {settings.subnet_final_rate}: expected at most the "
            f"--learning-rate {chosen.learning_rate}, from which it falls"
        )
    lengths = {
        "--warmup-epochs": (chosen.warmup_epochs, chosen.subnet_epochs),
        "--finetune-warmup-epochs": (transfer.finetune_warmup_epochs, chosen.finetune_epochs),
    }
    for flag, (value, *phases) in lengths.items():
        if short := [epochs for epochs in phases if 0 < epochs < value]:
            yield f"{flag} {value}: expected at most the {min(short)} epochs that it is a part of"
    for name in ("label_smoothing", "average"):
        if (value := getattr(chosen, name)) >= 1:
            yield f"{as_flag(name)} {value}: expected a number below 1"
    keeping = settings.keeping
    if keeping.only_subnet is not None and keeping.fresh:
        yield (
            "--fresh with --only-subnet would delete what the other sub-networks' processes have "
            "trained: give another --workdir, or start the whole run anew"
        )


def data_problems(settings: Settings, images: int, height: int, width: int) -> list[str]:
    """What is wrong with the settings for so many training images of such a size, a line each."""
    found = _unfilled_batch(settings.training.batch_size, images)
    return [*found, *_misfit_images(settings, fits.Image(height, width))]


def _depths(model: str) -> range:
    """The depths there are: three stages of n blocks, each of two layers in a ResNet."""
    return range(8, 1000, 6) if model == "resnet" else range(5, 1000, 3)


def _misfit_images(settings: Settings, image: fits.Image) -> Iterator[str]:
    """What is wrong with the settings for images of this size."""
    samples, subnets = settings.network.samples, settings.subnets
    if found := fits.misfit(samples, subnets, image):
        yield found
    elif settings.network.model == "cnn" and min(seen := fits.view(samples, subnets, image)) < 8:
        yield (
            f"--model cnn halves images three times, and with --samples {samples} each of "
            f"--subnets {subnets} sees only {seen}: take fewer sub-networks or --model resnet"
        )


def _unfilled_batch(batch_size: int, images: int) -> Iterator[str]:
    if batch_size > images:
        yield (
            f"--batch-size {batch_size} is more than the {images} training images; "
            f"give at most --batch-size {images}"
        )


def default_workdir(settings: Settings) -> Path:
    """A folder below runs/: a name to read, and a digest where flags depart from the preset.

    >>> default_workdir(Settings()).as_posix()
    'runs/auto-quick-k4-seed0'
    """
    chosen = {"subnets": settings.subnets, "seed": settings.seed}
    plain = flat(dataclasses.replace(PRESETS[settings.preset], **chosen))
    changed = {n: v for n, v in flat(settings).items() if n not in PLACES and v != plain[n]}
    dataset = re.sub(r"[^A-Za-z0-9]+", "-", settings.data.dataset).strip("-").lower()
    name = f"{dataset}-{settings.preset}-k{settings.subnets}-seed{settings.seed}"
    if changed.keys() - {"dataset"}:
        name += "-" + hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs", name)


def as_args(settings: Settings) -> list[str]:
    """The flags that ask for these settings, beside those that say where a run reads and writes.

    >>> as_args(Settings(seed=3, transfer=Transfer(carry_momentum=False)))
    ['--seed', '3', '--no-carry-momentum']
    """
    plain, args = flat(PRESETS[settings.preset]), []
    if settings.preset != "quick":
        args += ["--preset", settings.preset]
    for name, value in flat(settings).items():
        if name in PLACES or value == plain[name]:
            continue
        if isinstance(value, bool):
            args.append(as_flag(name) if value else as_flag(f"no_{name}"))
        else:
            args += [as_flag(name), str(value)]
    return args


def as_flag(name: str) -> str:
    """A setting's flag.

    >>> as_flag("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"
