"""Beyond the paper: levels, rounds, weighted classes and other heads, beside four epochs and two.

`python -m experiments.study.beyond` trains the quick preset's network once with each and seed, for
as many operations, and writes the table into docs/results.md. What gains nothing here has no option
in the experiment; this is what it would do.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn
from jaxtyping import Array
from rich.console import Console

import dcjax
from dcjax import training
from dcjax._pytrees import stack_trees, take_entries
from experiments import cli, data, markdown
from experiments.method import factory
from experiments.results.score import score
from experiments.run import console as progress
from experiments.run import provenance as environment
from experiments.run import startup
from experiments.settings.schema import Settings
from experiments.study import arms
from experiments.study.tables import spread

PyTree = Any


class Lab(NamedTuple):
    """What all trainings of a seed share.

    Attributes:
      x: some images as the networks get them.
      say: told how it goes.
    """

    settings: Settings
    dataset: data.Dataset
    network: nn.Module
    x: Array
    say: Callable[[str], None]


class Stage(NamedTuple):
    """Epochs on one schedule, and where in the whole road they are, for their random numbers."""

    place: int
    epochs: int
    warm: bool = False
    anneal: bool = False


class Trained(NamedTuple):
    """What a stage came to: variables, the optimiser's state, accuracies of the networks."""

    variables: PyTree
    opt_state: PyTree
    accuracies: list[float]


class Run(NamedTuple):
    """What a way came to: accuracies after every stage and after every composition."""

    stages: list[list[float]]

    @property
    def composed(self) -> float:
        """The last network that was composed, before it was trained further."""
        return self.stages[-2][0]

    @property
    def final(self) -> float:
        """At the end."""
        return self.stages[-1][0]


def default(lab: Lab) -> Run:
    """Four epochs of the sub-networks, two of the global network."""
    subnets = _side(lab, _begin(lab), None, Stage(0, 4, warm=True))
    return _finished(lab, [subnets.accuracies], *_composed(lab, subnets), Stage(1, 2, anneal=True))


def levels(lab: Lab) -> Run:
    """Two epochs of the sub-networks, one of pairs of them, composed, two of all, composed."""
    subnets = _side(lab, _begin(lab), None, Stage(0, 2, warm=True))
    pairs = _side(lab, *_paired(lab, subnets), Stage(1, 1))
    stages = [subnets.accuracies, pairs.accuracies]
    return _finished(lab, stages, *_composed(lab, pairs), Stage(2, 2, anneal=True))


def rounds(lab: Lab) -> Run:
    """Two epochs of the sub-networks, one composed, two of its diagonal blocks, one composed.

    Additive Schwarz: each block is trained as if the others, and what connects them, were not
    there; then all are put back.
    """
    subnets = _side(lab, _begin(lab), None, Stage(0, 2, warm=True))
    variables, momenta = _composed(lab, subnets)
    whole = _whole(lab, variables, momenta, Stage(1, 1))
    blocks = dcjax.extract(whole.variables, like=subnets.variables)
    again = _side(lab, blocks, None, Stage(2, 2))
    _, momenta = _composed(lab, again)
    back = dcjax.compose(again.variables, into=whole.variables)
    stages = [subnets.accuracies, whole.accuracies, again.accuracies]
    return _finished(lab, stages, back, momenta, Stage(3, 1, anneal=True))


def weighted_classes(lab: Lab) -> Run:
    """The default, sub-network k counting errors on the classes c with c mod K = k twice."""
    classes, subnets = len(lab.dataset.classes), lab.settings.subnets
    start, each = _begin(lab), []
    for k in range(subnets):
        own = np.arange(classes) % subnets == k
        weights = jnp.asarray(np.where(own, 2.0, (classes - 2 * own.sum()) / (~own).sum()))
        each.append(_side(lab, start, None, Stage(0, 4, warm=True), (k,), weights))
    joined = [
        jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)
        for trees in ([e.variables for e in each], [e.opt_state for e in each])
    ]
    trained = Trained(joined[0], joined[1], [a for e in each for a in e.accuracies])
    return _finished(lab, [trained.accuracies], *_composed(lab, trained), Stage(1, 2, anneal=True))


def summing_head(lab: Lab) -> Run:
    """The default, the composed head giving the sum of the sub-networks' logits, not their mean.

    Its gradients have nothing to do with the sub-networks': the momenta start anew.
    """
    subnets = _side(lab, _begin(lab), None, Stage(0, 4, warm=True))
    variables = dcjax.compose(subnets.variables, head="sum")
    return _finished(lab, [subnets.accuracies], variables, None, Stage(1, 2, anneal=True))


def sharper_head(lab: Lab) -> Run:
    """The default, the composed head giving twice the mean of the logits: a temperature of a half.

    Composed it decides as the mean does; its cost, and with it every gradient, is another.
    """
    subnets = _side(lab, _begin(lab), None, Stage(0, 4, warm=True))
    variables, momenta = _composed(lab, subnets)
    params = variables["params"]
    params = {**params, "head": jax.tree.map(lambda leaf: 2 * leaf, params["head"])}
    variables = {**variables, "params": params}
    return _finished(lab, [subnets.accuracies], variables, momenta, Stage(1, 2, anneal=True))


WAYS = {
    way.__name__.replace("_", "-"): way
    for way in (default, levels, rounds, weighted_classes, summing_head, sharper_head)
}


def _begin(lab: Lab) -> dcjax.Stacked:
    key = jax.random.key(lab.settings.seed)
    return dcjax.init(lab.network, lab.settings.subnets, key, lab.x)


def _recipe(lab: Lab, stage: Stage) -> training.Recipe:
    chosen = lab.settings.training
    schedule = factory.Schedule(
        stage.epochs,
        chosen.learning_rate,
        chosen.warmup_epochs if stage.warm else 0.0,
        0.0 if stage.anneal else chosen.learning_rate,
    )
    return factory.recipe(chosen, lab.dataset, schedule)


def _side(
    lab: Lab,
    stacked: dcjax.Stacked,
    momenta: PyTree,
    stage: Stage,
    members: Sequence[int] | None = None,
    weights: Array | None = None,
) -> Trained:
    """Train narrow networks side by side, as many as are stacked; or some of them."""
    recipe, count = _recipe(lab, stage), len(stacked)
    if weights is not None:
        plain = recipe.loss

        def loss(logits: Array, labels: Array) -> Array:
            return weights[labels] * plain(logits, labels)

        recipe = recipe._replace(loss=loss)
    if members is not None:
        stacked = take_entries(stacked, jnp.array(members))
    phase = training.side_by_side(
        dcjax.decompose(lab.network, count),
        dcjax.samples.replicate(count),
        recipe,
        count,
        members=members,
    )
    return _train(lab, phase, stacked, momenta, stage)


def _whole(lab: Lab, variables: PyTree, momenta: PyTree, stage: Stage) -> Trained:
    """Train the global network."""
    samples = dcjax.samples.replicate(lab.settings.subnets)
    phase = training.data_parallel(lab.network, samples, _recipe(lab, stage))
    return _train(lab, phase, variables, momenta, stage)


def _train(
    lab: Lab, phase: training.Phase, variables: PyTree, momenta: PyTree, stage: Stage
) -> Trained:
    key = jax.random.fold_in(jax.random.key(lab.settings.seed), stage.place)
    state = phase.start(variables, key)
    if momenta is not None:
        state = state._replace(
            opt_state=optax.tree_utils.tree_set(state.opt_state, trace=phase.spread(momenta))
        )
    fitted = training.fit(phase, state, phase.place(*lab.dataset.train), stage.epochs).state
    test = lab.dataset.test
    logits = training.evaluate(phase, fitted, phase.place(*test))
    accuracies = [
        score(each, test.labels).accuracy for each in logits.reshape(-1, *logits.shape[-2:])
    ]
    lab.say(f"  {stage.epochs} epochs: " + " ".join(f"{100 * each:.2f} %" for each in accuracies))
    opt_state = phase.gather(fitted.opt_state)
    return Trained(phase.finish(fitted), opt_state, accuracies)


def _composed(lab: Lab, trained: Trained) -> tuple[PyTree, PyTree]:
    """The composed network's variables and momenta."""
    return dcjax.compose(trained.variables), _momenta(lab, trained.variables, trained.opt_state)


def _momenta(lab: Lab, stacked: dcjax.Stacked, opt_state: PyTree) -> PyTree:
    optimizer = _recipe(lab, Stage(0, 1)).optimizer
    past = dcjax.compose_opt_state(optimizer, opt_state, stacked["params"])
    return optax.tree_utils.tree_get(past, "trace")


def _paired(lab: Lab, trained: Trained) -> tuple[dcjax.Stacked, PyTree]:
    """K/2 networks of twice the width, each composed of two, and their momenta."""
    half = len(trained.variables) // 2
    narrow = dcjax.decompose(lab.network, half)
    layout, wider = dcjax.layout(narrow, 2, lab.x), dcjax.layout(lab.network, half, lab.x)

    def pair(k: int) -> tuple[PyTree, PyTree]:
        both = (trained.variables.tree, trained.opt_state)
        tree, opt_state = take_entries(both, jnp.array([2 * k, 2 * k + 1]))
        two = dcjax.Stacked(tree, layout)
        return dcjax.compose(two), _momenta(lab, two, opt_state)

    each = [pair(k) for k in range(half)]
    momenta = stack_trees([m for _, m in each])
    return dcjax.stack([v for v, _ in each], like=wider), momenta


def _finished(
    lab: Lab, stages: list[list[float]], variables: PyTree, momenta: PyTree, stage: Stage
) -> Run:
    """The composed network's accuracy, its training, and its accuracy after that."""
    at_once = _whole(lab, variables, None, Stage(stage.place, 0))
    trained = _whole(lab, variables, momenta, stage)
    return Run([*stages, at_once.accuracies, trained.accuracies])


@dataclasses.dataclass(frozen=True)
class Options:
    """Train with each way that has no results yet, and rewrite the table from all there are."""

    ways: Annotated[tuple[str, ...], tyro.conf.arg(metavar=" ".join(WAYS))] = tuple(WAYS)
    """Which."""
    seeds: int = 1
    """How many seeds of each."""
    data_dir: Path | None = None
    """Where tensorflow-datasets keeps its data; by default TFDS_DATA_DIR, or its own place."""
    records: Path = Path("docs/study/beyond.json")
    """What has been run."""
    output: Path = Path("docs/results.md")
    """The document whose table is rewritten, between its markers."""


def main() -> int:
    """The exit code: 0 done, 2 bad input."""
    options = tyro.cli(Options, prog="python -m experiments.study.beyond")
    unknown = set(options.ways) - set(WAYS)
    if unknown or options.seeds < 1 or not options.output.is_file():
        print(
            f"python -m experiments.study.beyond: error: expected --ways of {' '.join(WAYS)}, "
            f"--seeds ≥ 1 and an existing --output, got {sorted(unknown)}, {options.seeds} and "
            f"{options.output}",
            file=sys.stderr,
        )
        return 2
    startup.start_jax(Settings().subnets)
    kept = json.loads(options.records.read_text()) if options.records.is_file() else {}
    try:
        _run(options, kept)
    except (cli.BadInput, data.DataError) as error:
        print(f"python -m experiments.study.beyond: error: {error}", file=sys.stderr)
        return 2
    text = markdown.put(options.output.read_text(), "beyond", _table(kept))
    markdown.write(options.output, text)
    return 0


def _run(options: Options, kept: dict[str, dict[str, Any]]) -> None:
    """Train with what is not among the kept, and keep it, each as soon as it is trained."""
    say = functools.partial(print, file=sys.stderr, flush=True)
    for seed in range(options.seeds):
        for way in options.ways:
            if (name := f"{way}-seed{seed}") not in kept:
                say(name)
                found = WAYS[way](_lab(options.data_dir, seed, say))
                kept[name] = {"way": way, "stages": found.stages}
                options.records.parent.mkdir(parents=True, exist_ok=True)
                markdown.write(options.records, json.dumps(kept, indent=1) + "\n")


def _lab(data_dir: Path | None, seed: int, say: Callable[[str], None]) -> Lab:
    arm = arms.averaged((4, 2), Settings().training.learning_rate)
    settings = arms.settings(arms.STUDIES["cifar10"], arm, seed)
    settings = arms.with_flags(settings, {"data_dir": data_dir})
    dataset = cli.load(settings, progress.voice(Console(quiet=True)))
    convolution = factory.convolution(settings.network, say)
    network = factory.network(settings.network, len(dataset.classes), convolution=convolution)
    x = factory.normalise(dataset)(jnp.asarray(dataset.test.images[:2]))
    return Lab(settings, dataset, network, x, say)


def _table(kept: dict[str, dict[str, Any]]) -> str:
    body = []
    for name, way in WAYS.items():
        runs = [Run(entry["stages"]) for entry in kept.values() if entry["way"] == name]
        if runs:
            composed = spread([100 * run.composed for run in runs])
            final = spread([100 * run.final for run in runs])
            what = (way.__doc__ or "").splitlines()[0].rstrip(".")
            body.append([name, what, str(len(runs)), composed, final])
    head = ["way", "what", "seeds", "composed last, %", "final, %"]
    versions = environment.versions()
    said = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "dcjax")
    return f"    python -m experiments.study.beyond\n\n{said}.\n\n{markdown.table(head, body)}"


if __name__ == "__main__":
    sys.exit(main())
