"""The whole road: sub-networks, composition, fine-tuning, and the baseline beside it."""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key

import dcjax
from dcjax import training
from experiments.data import Dataset
from experiments.method import factory, stage, subnetworks
from experiments.results.score import Score, score
from experiments.results.speedup import speedup
from experiments.run import provenance as environment
from experiments.run.checkpointing import Keeper
from experiments.settings.schema import Settings

PyTree = Any
Results = dict[str, Any]
VERIFIED_IMAGES = 64
"""Test images on which the composed network's feature maps are held against the sub-networks'."""


TITLES = {"subnets": "sub-networks", "finetune": "fine-tuning", "baseline": "baseline"}
"""The phases of training, by their names in the results, as people read them."""


class Run(NamedTuple):
    """What the phases of one run share.

    Attributes:
      network: the global network as it is trained.
      exact: the same network computing in float32, as everything is measured.
      logits: the exact network's on the test split, of a state in fine-tuning or the baseline.
      images: some test images as the networks get them.
      key: all random keys are folded from it.
    """

    settings: Settings
    dataset: Dataset
    samples: dcjax.samples.Samples
    network: nn.Module
    exact: nn.Module
    logits: stage.Logits
    images: Float[Array, "n H W C"]
    key: Key[Array, ""]
    keeper: Keeper


class Part(NamedTuple):
    """What came of a part of the road; `results` is its part of the results."""

    variables: PyTree
    devices: int
    compile_seconds: float
    results: Results


def run(settings: Settings, dataset: Dataset, keeper: Keeper) -> Results:
    """Run a study, or go on with what its checkpoints hold.

    Args:
      settings: checked ones.
      dataset: with the training images to use.
      keeper: keeps checkpoints and metrics, and speaks.

    Returns:
      The results, of plain values.

    Raises:
      Diverged: a sub-network has, and the run is not to go on.
    """
    this, chosen = _begin(settings, dataset, keeper), settings.training
    subnets, trained, bounds = _train_subnets(this)
    composed = _compose(this, trained)
    finetune = _finetune(this, composed.variables, trained)
    schedule = factory.Schedule(
        chosen.baseline_epochs, chosen.learning_rate, chosen.baseline_warmup_epochs
    )
    recipe = factory.recipe(chosen, dataset, schedule)
    baseline = _train_global(this, "baseline", _from_scratch(this), recipe, schedule.epochs)
    start = finetune.results["curve"][0]
    measured = {
        "subnets_phase": subnets.results,
        "composed": {n: start[n] for n in ("accuracy", "cost")} | bounds | composed.results,
        "finetune": finetune.results,
        "baseline": baseline.results,
    }
    parts = {"subnets": subnets, "compose": composed, "finetune": finetune, "baseline": baseline}
    return {
        "dataset": dataset.name,
        "subnets": settings.subnets,
        "seed": settings.seed,
        "model": _model(this, subnets, baseline),
        "versions": environment.versions(),
        "devices": environment.devices({name: part.devices for name, part in parts.items()}),
        "compile_seconds": {name: part.compile_seconds for name, part in parts.items()},
        **measured,
        "speedup": speedup(**measured, classes=len(dataset.classes)),
    }


def run_one(settings: Settings, dataset: Dataset, keeper: Keeper, member: int) -> bool:
    """Train one sub-network by itself, as it would be beside the others; whether it is kept."""
    return subnetworks.train_one(_members(_begin(settings, dataset, keeper)), member)


def _begin(settings: Settings, dataset: Dataset, keeper: Keeper) -> Run:
    """Make what the phases share."""
    chosen, classes = settings.network, len(dataset.classes)
    samples = dcjax.samples.make(chosen.samples, settings.subnets)
    convolution = factory.convolution(chosen, keeper.voice.say)
    exact = factory.network(chosen, classes, convolution=convolution)
    recipe = factory.evaluation(settings.training, dataset)
    return Run(
        settings,
        dataset,
        samples,
        network=factory.network(chosen, classes, factory.precision(chosen), convolution),
        exact=exact,
        logits=stage.exact_logits(training.data_parallel(exact, samples, recipe), dataset.test),
        images=factory.normalise(dataset)(jnp.asarray(dataset.test.images[:VERIFIED_IMAGES])),
        key=jax.random.key(settings.seed),
        keeper=keeper,
    )


def _train_subnets(this: Run) -> tuple[Part, subnetworks.Outcome, dict[str, Any]]:
    """The trained sub-networks, and the bounds for the composed network."""
    settings, labels = this.settings, this.dataset.test.labels
    shared = _members(this)
    trained = subnetworks.train_all(shared)
    recipe = factory.evaluation(settings.training, this.dataset)
    narrow = dcjax.decompose(this.exact, settings.subnets)
    exact = training.side_by_side(narrow, this.samples, recipe, settings.subnets)
    state = exact.start(trained.stacked, shared.key)
    logits = stage.exact_logits(exact, this.dataset.test)(state)
    scores = [score(z, labels) for z in logits]
    results = trained.progress.times | {
        "accuracy": [each.accuracy for each in scores],
        "cost": [each.cost for each in scores],
    }
    if trained.diverged:
        results["diverged"] = trained.diverged
    part = Part(trained.stacked, trained.devices, trained.progress.compile_seconds, results)
    return part, trained, _bounds(logits, labels, trained.weights)


def _members(this: Run) -> subnetworks.Members:
    """What the sub-networks' trainings share."""
    init_key, key = _keys(this, "subnets")
    start = dcjax.init(
        this.exact, this.settings.subnets, init_key, this.images[:2], samples=this.samples
    )
    return subnetworks.Members(
        this.settings, this.dataset, this.samples, this.network, start, key, this.keeper
    )


def _compose(this: Run, trained: subnetworks.Outcome) -> Part:
    """Compose the sub-networks, and compare every feature map with theirs; once in a run."""
    stacked, weights = trained.stacked, trained.weights
    with this.keeper.opened("composed") as kept:
        if kept.found is not None:
            shapes = jax.eval_shape(dcjax.compose, stacked)
            return Part(kept.found.into(shapes), 1, **kept.found.record["part"])
        started = time.perf_counter()
        compose = jax.jit(dcjax.compose).lower(stacked, weights=weights).compile()
        compiled = time.perf_counter()
        variables = jax.block_until_ready(compose(stacked, weights=weights))
        seconds = time.perf_counter() - compiled
        results = {"seconds": seconds, "feature_error": _feature_error(this, stacked, weights)}
        this.keeper.log(phase="composed", **results)
        part = {"compile_seconds": compiled - started, "results": results}
        kept.save(0, variables, {"phase": "composed", "part": part}, finished=True)
        return Part(variables, 1, **part)


def _feature_error(this: Run, stacked: dcjax.Stacked, weights: Float[Array, " K"] | None) -> float:
    """The largest error of the composed network's feature maps; nan where they cannot be compared.

    It is measured, whatever it is: the training that it would stop here is done already.
    """
    with jax.default_matmul_precision("highest"):
        try:
            return dcjax.verify(
                this.exact,
                stacked,
                this.images,
                samples=this.samples,
                tolerance=math.inf,
                weights=weights,
            ).error
        except ValueError:  # they are zero, or no numbers
            return math.nan


def _finetune(this: Run, variables: PyTree, trained: subnetworks.Outcome) -> Part:
    """Train the composed network further."""
    chosen, transfer = this.settings.training, this.settings.transfer
    schedule = factory.Schedule(
        chosen.finetune_epochs, this.settings.finetune_rate, transfer.finetune_warmup_epochs
    )
    params = trained.stacked["params"]
    recipe = factory.recipe(chosen, this.dataset, schedule, *_block_rates(this, params))
    opt_state = None
    if transfer.carry_momentum:
        narrow = factory.recipe(chosen, this.dataset, schedule).optimizer
        past = dcjax.compose_opt_state(narrow, trained.opt_state, params, weights=trained.weights)
        opt_state = optax.tree_utils.tree_set(
            jax.jit(recipe.optimizer.init)(variables["params"]),
            trace=optax.tree_utils.tree_get(past, "trace"),
        )
    return _train_global(this, "finetune", variables, recipe, schedule.epochs, opt_state)


def _block_rates(this: Run, params: dcjax.Stacked) -> list[optax.GradientTransformation]:
    """What fine-tuning does with the updates of the blocks, if anything."""
    head = this.settings.head_rate
    return [] if head == 1 else [training.scale_blocks(params, head=head)]


def _train_global(
    this: Run,
    name: str,
    variables: PyTree,
    recipe: training.Recipe,
    epochs: int,
    opt_state: PyTree = None,
) -> Part:
    """Train the global network from these variables, measured as it goes."""
    trainer = training.data_parallel(this.network, this.samples, recipe)
    key = _keys(this, name)[1]

    def measure(state: training.TrainState) -> Score:
        return score(this.logits(state), this.dataset.test.labels)

    plan = stage.Plan(
        name,
        TITLES[name],
        trainer,
        variables,
        key,
        epochs,
        measure,
        every=this.settings.training.evaluate_every,
        opt_state=opt_state,
    )
    trained = stage.train(plan, this.dataset.train, this.keeper)
    progress = trained.progress
    final = {name: progress.curve[-1][name] for name in ("accuracy", "cost")}
    results = progress.times | final | {"curve": list(progress.curve)}
    return Part(trained.variables, len(trainer.devices), progress.compile_seconds, results)


def _from_scratch(this: Run) -> PyTree:
    """The global network's variables as they are initialised without sub-networks."""
    x = this.samples.join(this.images[:2])
    # XLA's optimisation of the random numbers takes many times as long as computing them once.
    init = jax.jit(this.exact.init, compiler_options={"xla_backend_optimization_level": 1})
    return init(_keys(this, "baseline")[0], x)


def _keys(this: Run, name: str) -> Key[Array, "2"]:
    """Two random keys of a phase: for its initialisation, and for its training."""
    return jax.random.split(jax.random.fold_in(this.key, list(TITLES).index(name)))


def _bounds(
    logits: Float[np.ndarray, "K N C"], labels: np.ndarray, weights: Float[Array, " K"] | None
) -> dict[str, float]:
    """What the sub-networks' logits say of the composed network; those without weight nothing."""
    if weights is not None:
        logits = logits[np.asarray(weights) > 0]
    found = dcjax.bounds(jnp.asarray(logits), jnp.asarray(labels))

    def fraction(value: Array) -> float:
        # m/N in float32 is not quite m/N: back to the count m that it stands for.
        return round(float(value) * len(labels)) / len(labels)

    return {
        "accuracy_lower": fraction(found.accuracy_lower),
        "accuracy_upper": fraction(found.accuracy_upper),
        "cost_lower": float(found.cost_lower),
        "cost_upper": float(found.cost_upper),
    }


def _model(this: Run, subnets: Part, baseline: Part) -> Results:
    """What was trained."""
    chosen = this.settings.network
    return {
        "name": chosen.model,
        "depth": chosen.depth,
        "width": chosen.width,
        "classes": len(this.dataset.classes),
        "samples": chosen.samples,
        "precision": factory.precision(chosen),
        "convolutions": "jax" if this.exact.conv_general_dilated is None else "native",
        "parameters": factory.parameters(baseline.variables),
        "subnet_parameters": factory.parameters(subnets.variables[0]),
    }
