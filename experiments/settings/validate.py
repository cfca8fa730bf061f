"""Everything that can be wrong with settings, found before JAX starts a backend."""

import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.settings.flags import CHOICES, Settings
from experiments.settings.naming import as_flag, flat

_LEAST = {
    1: (
        *("subnets", "width", "depth", "batch_size", "train_size"),
        *("checkpoint_every", "evaluate_every", "keep"),
    ),
    0: (
        *("only_subnet", "seed", "subnet_epochs", "finetune_epochs", "baseline_epochs"),
        *("warmup_epochs", "baseline_warmup_epochs", "finetune_warmup_epochs"),
        *("weight_decay", "label_smoothing", "average", "subnet_final_rate", "head_rate"),
    ),
}
_POSITIVE = ("learning_rate", "finetune_rate")


def problems(settings: Settings) -> list[str]:
    """Return everything that is wrong with the settings, a line each; empty if they can run.

    >>> problems(Settings())
    []
    >>> print(*problems(Settings(subnets=3)))
    --subnets 3: the width 32 is not divisible by 3; divisors of 32: 1, 2, 4, 8, 16, 32
    """
    values = flat(settings)
    found = [*_wrong_numbers(values), *_unknown_names(values)]
    return found or [*_conflicts(settings)]


def data_problems(settings: Settings, images: int, height: int, width: int) -> list[str]:
    """Return what is wrong with the settings for this many training images of this size."""
    found = _unfilled_batch(settings.training.batch_size, images)
    return [*found, *_misfit_images(settings, height, width)]


def _wrong_numbers(values: dict[str, Any]) -> Iterator[str]:
    """Find the numbers outside their ranges; NaN and infinity are outside of all."""
    for least, names in _LEAST.items():
        for name in names:
            value = values[name]
            if value is not None and not least <= value < math.inf:
                kind = "an integer" if isinstance(value, int) else "a finite number"
                yield f"{as_flag(name)} {value}: expected {kind} of at least {least}"
    for name in _POSITIVE:
        if values[name] is not None and not 0 < values[name] < math.inf:
            yield f"{as_flag(name)} {values[name]}: expected a finite number above 0"
    for name in ("label_smoothing", "average"):
        if 1 <= values[name] < math.inf:
            yield f"{as_flag(name)} {values[name]}: expected a number below 1"


def _unknown_names(values: dict[str, Any]) -> Iterator[str]:
    for name, known in CHOICES.items():
        if values[name] not in known:
            near = difflib.get_close_matches(values[name], known, n=1)
            hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
            yield f"{as_flag(name)} {values[name]!r}: {hint} from {', '.join(known)}"


def _conflicts(settings: Settings) -> Iterator[str]:
    """Find values that are valid by themselves but not together."""
    subnets, network, keeping = settings.subnets, settings.network, settings.keeping
    if keeping.only_subnet is not None and keeping.only_subnet >= subnets:
        yield (
            f"--only-subnet {keeping.only_subnet}: expected one from 0 to {subnets - 1}, "
            f"of --subnets {subnets}"
        )
    if keeping.only_subnet is not None and keeping.fresh:
        yield (
            "--fresh with --only-subnet would delete what other processes have trained: give "
            "another --workdir, or give --fresh without --only-subnet"
        )
    if network.width % subnets:
        divisors = ", ".join(str(d) for d in range(1, network.width + 1) if network.width % d == 0)
        yield (
            f"--subnets {subnets}: the width {network.width} is not divisible by {subnets}; "
            f"divisors of {network.width}: {divisors}"
        )
    # Three stages of n blocks, of two layers each in a ResNet and of one in a CNN.
    depths = range(8, 1000, 6) if network.model == "resnet" else range(5, 1000, 3)
    if network.depth not in depths:
        near = min(depths, key=lambda depth: abs(depth - network.depth))
        yield (
            f"--depth {network.depth}: a {network.model} has {depths.step}n+2 layers, that is "
            f"{', '.join(map(str, depths[:4]))}, …; the nearest is {near}"
        )
    yield from _wrong_schedules(settings)
    if settings.data.train_size is not None:
        yield from _unfilled_batch(settings.training.batch_size, settings.data.train_size)
    if not settings.data.dataset.startswith("folder:"):  # a folder's images are checked when read
        yield from _misfit_images(settings, 32, 32)


def _wrong_schedules(settings: Settings) -> Iterator[str]:
    training, warmup = settings.training, settings.transfer.finetune_warmup_epochs
    if settings.subnet_final_rate > training.learning_rate:
        yield (
            f"--subnet-final-rate {settings.subnet_final_rate}: expected at most the "
            f"--learning-rate {training.learning_rate}"
        )
    for flag, part, epochs in (
        ("--warmup-epochs", training.warmup_epochs, training.subnet_epochs),
        ("--finetune-warmup-epochs", warmup, training.finetune_epochs),
    ):
        if 0 < epochs < part:
            yield f"{flag} {part}: expected at most the {epochs} epochs that it is a part of"


def _unfilled_batch(batch_size: int, images: int) -> Iterator[str]:
    if batch_size > images:
        yield (
            f"--batch-size {batch_size} is more than the {images} training images; "
            f"give at most --batch-size {images}"
        )


def _misfit_images(settings: Settings, height: int, width: int) -> Iterator[str]:
    samples, subnets = settings.network.samples, settings.subnets
    seen = _view(samples, subnets, height, width)
    if seen is None:
        fits = [k for k in range(1, 65) if _view(samples, k, height, width)]
        yield (
            f"--samples {samples} does not fit --subnets {subnets} and images of {height}×{width}; "
            f"up to 64 it fits {', '.join(map(str, fits))}"
        )
    elif settings.network.model == "cnn" and min(seen) < 8:
        yield (
            f"--model cnn halves images three times, and with --samples {samples} each of "
            f"--subnets {subnets} sees only {seen[0]}×{seen[1]}: take fewer sub-networks or "
            "--model resnet"
        )


def _view(samples: str, subnets: int, height: int, width: int) -> Sequence[int] | None:
    """Return the height and width of what each sub-network sees; None if K does not fit."""
    import jax  # tracing shapes starts no backend; settings that need no tracing do not wait for it

    import dcjax

    images = jax.ShapeDtypeStruct((1, height, width, 3), "float32")
    try:
        return jax.eval_shape(dcjax.samples.make(samples, subnets).split, images).shape[2:4]
    except ValueError:
        return None
