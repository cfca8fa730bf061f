"""Everything that can be wrong with settings, found before JAX starts a backend."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from experiments.results.units import counted
from experiments.settings import own
from experiments.settings.flags import Expected, Network, Settings, Training
from experiments.settings.naming import as_flag
from experiments.settings.presets import PRESETS

ENOUGH_STEPS = 100
SMALLEST_BATCH = 8


def problems(settings: Settings) -> list[str]:
    """Return everything that is wrong with the settings, a line each; empty if they can run.

    >>> problems(Settings())
    []
    >>> print(*problems(Settings(subnets=3)))
    --subnets 3: the width 32 is not divisible by 3; divisors of 32: 1, 2, 4, 8, 16, 32
    """
    return [*_wrong_numbers(settings)] or [*_conflicts(settings)]


def data_problems(settings: Settings, images: tuple[int, ...]) -> Iterator[str]:
    """Find what is wrong with the settings for training images of this shape, (N, H, W, 3)."""
    import jax  # tracing shapes starts no backend

    import dcjax

    size, chosen = settings.training.batch_size, settings.network
    yield from _too_rare(settings.training, images[0])
    if size > images[0]:
        yield (
            f"--batch-size {size} is more than the {images[0]} training images; "
            f"give at most --batch-size {images[0]}"
        )
    try:
        split = dcjax.samples.make(chosen.samples, settings.subnets).split
        views = jax.eval_shape(split, jax.ShapeDtypeStruct(images, "float32"))
    except ValueError as error:
        yield f"--samples {error}"
        return
    height, width = views.shape[2:4]
    if chosen.model == "cnn" and min(height, width) < 8:
        fewer = "" if chosen.samples == "replicate" else "fewer --subnets or "
        yield (
            f"--model cnn halves images three times, and each sub-network sees only "
            f"{height}×{width}: take {fewer}--model resnet"
        )


def _too_rare(chosen: Training, images: int) -> Iterator[str]:
    """Find averages that would never be taken."""
    for name, every, epochs in (
        ("average_every", chosen.average_every, chosen.finetune_epochs),
        ("baseline_average_every", chosen.baseline_average_every, chosen.baseline_epochs),
    ):
        steps = epochs * (images // chosen.batch_size)
        if epochs and every and every > steps:
            yield (
                f"{as_flag(name)} {every}: the stage has {steps} steps; give at most {steps}, or 0 "
                "for an average at the end only"
            )


def too_few_steps(settings: Settings, images: int) -> str:
    """Return a note with better flags if the training is too short to get anywhere; else "".

    Below about 100 steps the quick preset ends at guessing, because its rate is too high for so
    short a warm-up and the averaged weights still hold the initial ones. The rate is proportional
    to the batch, and batches smaller than 8 are too noisy for batch statistics.

    >>> print(too_few_steps(Settings(), 480))
    note: 480 images make 18 steps of 128 in 6 epochs, too few to learn well: --batch-size 16 \
--learning-rate 0.1 makes 180
    """
    chosen = settings.training
    epochs = min((e for e in (chosen.subnet_epochs, chosen.baseline_epochs) if e), default=0)
    size = chosen.batch_size
    steps = epochs * (images // size)
    if not epochs or steps >= ENOUGH_STEPS:
        return ""
    while size > SMALLEST_BATCH and epochs * (images // size) < ENOUGH_STEPS:
        size = max(SMALLEST_BATCH, size // 2)
    flags, better = [], epochs
    if size < chosen.batch_size:
        rate = chosen.learning_rate * size / chosen.batch_size
        flags += [f"--batch-size {size} --learning-rate {rate:.3g}"]
    if epochs * (images // size) < ENOUGH_STEPS:
        better = math.ceil(ENOUGH_STEPS / (images // size))
        flags += [f"--subnet-epochs {better} --baseline-epochs {better}"]
    return (
        f"note: {images} images make {steps} steps of {chosen.batch_size} in "
        f"{counted(epochs, 'epoch')}, too few to learn well: {' '.join(flags)} makes "
        f"{better * (images // size)}"
    )


def _wrong_numbers(group: Any) -> Iterator[str]:
    for name, hint in get_type_hints(type(group), include_extras=True).items():
        value = getattr(group, name)
        if dataclasses.is_dataclass(hint):
            yield from _wrong_numbers(value)
        # The hint itself, or the first part of `Count | None`.
        for part in (hint, *get_args(hint)):
            for each in getattr(part, "__metadata__", ()):
                if isinstance(each, Expected) and value is not None and not each.test(value):
                    yield f"{as_flag(name)} {value}: expected {each.words}"


def _wrong_machines(settings: Settings) -> Iterator[str]:
    chosen, only = settings.machines, settings.keeping.only_subnet
    given = (chosen.coordinator, chosen.processes, chosen.process)
    if chosen.distributed and given != (None, None, None):
        yield "--distributed finds the other processes by itself: leave out the other flags for it"
    elif not chosen.distributed and given != (None, None, None):
        if None in given:
            yield "several processes need all of --coordinator HOST:PORT, --processes and --process"
            return
        assert chosen.processes is not None
        assert chosen.process is not None
        if chosen.process >= chosen.processes:
            yield (
                f"--process {chosen.process}: expected one from 0 to {chosen.processes - 1}, of "
                f"--processes {chosen.processes}"
            )
        if settings.training.batch_size % chosen.processes:
            yield (
                f"--batch-size {settings.training.batch_size}: expected a multiple of --processes "
                f"{chosen.processes}, which share each batch"
            )
        host, colon, port = str(chosen.coordinator).rpartition(":")
        if not (host and colon and port.isdecimal()):
            yield f"--coordinator {chosen.coordinator}: expected HOST:PORT"
    if chosen.several and only is not None:
        yield "--only-subnet needs no other processes: leave out the flags that join them"


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
    yield from _wrong_machines(settings)
    chosen, usual = settings.training, PRESETS[settings.preset].training
    if chosen.outer_rate and not (chosen.average_every or chosen.baseline_average_every):
        yield (
            f"--outer-rate {chosen.outer_rate}: a step after averages, so it needs --average-every "
            "or --baseline-average-every of at least 1"
        )
    if chosen.optimizer != "sgd" and chosen.learning_rate == usual.learning_rate:
        yield (
            f"--optimizer {chosen.optimizer} with the learning rate of sgd, {usual.learning_rate}: "
            "give its own, --learning-rate 0.001 for example"
        )
    if ":" in network.model:
        pass  # its width and depth are checked when it is made
    elif network.model not in own.BUILT_IN:
        yield f"--model {network.model}: expected {', '.join(own.BUILT_IN)} or MODULE:CLASS"
    else:
        yield from _wrong_sizes(network, subnets)
    if settings.subnet_final_rate > settings.training.learning_rate:
        yield (
            f"--subnet-final-rate {settings.subnet_final_rate}: expected at most the "
            f"--learning-rate {settings.training.learning_rate}"
        )


def _wrong_sizes(network: Network, subnets: int) -> Iterator[str]:
    """Find a width or depth that the network cannot have."""
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
            f"{', '.join(map(str, depths[:4]))}, …, {depths[-1]}; the nearest is {near}"
        )
