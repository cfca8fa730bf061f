"""The plan of a run, before it trains: sizes, operations, times."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree

from dcjax import method, training
from experiments.method import factory, operations
from experiments.method.factory import Schedule, Setup
from experiments.results.schema import Operations
from experiments.results.units import clock, counted
from experiments.results.units import operations as shown
from experiments.run import provenance
from experiments.run.console import Expected
from experiments.settings.flags import Training

PASSES = 3
"""Forward, and the gradients by the activations and by the parameters."""
MEASURED_STEPS = 4


class Sizes(NamedTuple):
    """The sizes of a run, found without computing anything.

    Attributes:
      parameters: of the global network; `subnet_parameters` of each sub-network.
      steps: in an epoch.
      operations: floating-point operations of an epoch.
    """

    parameters: int
    subnet_parameters: int
    steps: int
    operations: Operations


def sizes(this: Setup) -> Sizes:
    """Count parameters, steps and operations."""
    network = factory.network(this.settings.network, len(this.dataset.classes))
    narrow, samples = this.road.narrow(network), this.road.samples
    image = jax.ShapeDtypeStruct((1, *this.dataset.train.images.shape[1:]), "float32")
    own = jax.eval_shape(lambda x: samples.split(x)[0], image)
    joined = jax.eval_shape(samples.join, image)
    batch = this.settings.training.batch_size
    steps = training.steps_per_epoch(len(this.dataset.train.labels), batch)
    passes, call = PASSES * batch * steps, this.road.call
    return Sizes(
        _parameters(network, joined, call),
        _parameters(narrow, own, call),
        steps,
        {
            "subnets": passes * this.settings.subnets * operations.forward(narrow, own, **call),
            "global": passes * operations.forward(network, joined, **call),
        },
    )


def stages(this: Setup, sizes: Sizes) -> dict[str, Expected]:
    """Return the stages that will be trained, by their names in the results."""
    chosen = this.settings.training
    epochs = chosen.subnet_epochs, chosen.finetune_epochs, chosen.baseline_epochs
    each = sizes.operations
    kinds = each["subnets"], each["global"], each["global"]
    every = zip(method.STAGES.items(), epochs, kinds, strict=True)
    return {name: Expected(title, count, kind) for (name, title), count, kind in every}


def opening(this: Setup, sizes: Sizes) -> Iterator[str]:
    """Yield what a run says first: data, networks, devices, workdir."""
    settings, classes = this.settings, this.dataset.classes
    chosen, count = settings.network, settings.subnets
    yield f"data: {this.dataset.name}, {len(classes)} classes; {factory.treatment(this.dataset)}"
    yield (
        f"networks: {chosen.model} of depth {chosen.depth} and width {chosen.width}, "
        f"{sizes.parameters:,} parameters; {counted(count, 'sub-network')} of width "
        f"{chosen.width // count}, {sizes.subnet_parameters:,} parameters each; training in "
        f"{factory.precision(chosen)}"
    )
    here = provenance.devices({})
    threads = f" on {counted(here['cpu_threads'], 'thread')}" if here["platform"] == "cpu" else ""
    name = here["processor"] if here["platform"] == "cpu" else here["kind"]
    yield f"devices: {here['count']} of {here['platform']}{threads} ({name})"
    yield from _averages(settings.training)
    yield f"workdir: {this.keeper.workdir}"


def _averages(chosen: Training) -> Iterator[str]:
    """Yield the stages that train a copy on each device."""
    outer = f", then an outer step at rate {chosen.outer_rate:g}" if chosen.outer_rate else ""
    for stage, every in (
        ("finetune", chosen.average_every),
        ("baseline", chosen.baseline_average_every),
    ):
        if every is not None:
            when = f"every {every} steps{outer}" if every else "at the end"
            yield f"{method.STAGES[stage]}: a copy on each device, averaged {when}"


def dry_run(this: Setup) -> Iterator[str]:
    """Yield the plan of a run, with times from a few steps that are measured here and forgotten."""
    found = sizes(this)
    yield from opening(this, found)
    rows = [("stage", "epochs", "steps", "operations", "about")]
    seconds = {"subnets": _seconds(this, narrow=True), "global": _seconds(this, narrow=False)}
    whole = 0.0
    for name, stage in stages(this, found).items():
        steps = stage.epochs * found.steps
        spent = steps * seconds["subnets" if name == "subnets" else "global"]
        whole += spent
        operations = shown(stage.epochs * stage.operations)
        rows.append((stage.title, str(stage.epochs), str(steps), operations, clock(spent)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield ""
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])
    yield f"in all about {clock(whole)} of training, without compiling and evaluating"
    yield f"memory after these steps: {provenance.memory() / 2**30:.1f} GiB"
    yield ""
    yield str(this.road.initial_subnets().layout)


def _seconds(this: Setup, *, narrow: bool) -> float:
    """Measure the seconds of a training step of all sub-networks, or of the global network."""
    road, settings = this.road, this.settings
    recipe = factory.recipe(settings.training, this.dataset, Schedule(epochs=1))
    if narrow:
        network = road.narrow(road.network)
        trainer = training.side_by_side(network, road.samples, recipe, settings.subnets)
        variables: PyTree = road.initial_subnets()
    else:
        trainer = training.data_parallel(road.network, road.samples, recipe)
        variables = road.from_scratch()
    size = settings.training.batch_size
    count = min(MEASURED_STEPS * size, len(road.train.labels))
    data = trainer.place(*(np.asarray(part[:count]) for part in road.train))
    state: Any = trainer.start(variables, road.key)
    done = training.fit(trainer, state, data, 2).history
    return (done[1].seconds - done[0].seconds) / (count // size)


def _parameters(network: nn.Module, x: jax.ShapeDtypeStruct, call: Mapping[str, Any]) -> int:
    variables: PyTree = jax.eval_shape(partial(network.init, **call), jax.random.key(0), x)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
