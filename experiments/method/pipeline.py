"""The whole method: sub-networks, composition, fine-tuning, and the baseline beside it."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

import dcjax
from dcjax import training
from experiments.data import Dataset
from experiments.method import factory, stage, subnetworks
from experiments.method.factory import Schedule, Setup
from experiments.results.schema import Bounds, Composed, GlobalPhase, Model, Results, SubnetsPhase
from experiments.results.score import Score, score
from experiments.results.speedup import speedup
from experiments.run import provenance
from experiments.run.checkpointing import Keeper
from experiments.settings.flags import Settings


def run(settings: Settings, dataset: Dataset, keeper: Keeper) -> Results:
    """Run the method, or continue from its checkpoints.

    Args:
      settings: valid ones.
      dataset: with the training images to use.
      keeper: keeps checkpoints and metrics, and speaks.

    Returns:
      The results.

    Raises:
      Diverged: a sub-network diverged, and may not be restarted (again) or dropped.
    """
    this = factory.setup(settings, dataset, keeper)
    subnets = subnetworks.train_all(this)
    subnets_phase, bounds = _evaluate_subnets(this, subnets)
    variables, composition = _compose(this, subnets)
    evaluate = _evaluation(this)
    finetuned = _finetune(this, variables, subnets, evaluate)
    trained = _train_baseline(this, evaluate)
    finetune, baseline = _results(finetuned), _results(trained)
    composed: Composed = {
        "accuracy": finetune["curve"][0]["accuracy"],
        "cost": finetune["curve"][0]["cost"],
        **bounds,
        "seconds": composition["seconds"],
        "feature_error": composition["feature_error"],
    }
    stages = {"subnets": subnets.progress, "finetune": finetuned, "baseline": trained}
    used = {name: progress.devices for name, progress in stages.items()}
    compiled = {name: progress.compile_seconds for name, progress in stages.items()}
    return {
        "dataset": dataset.name,
        "subnets": settings.subnets,
        "seed": settings.seed,
        "model": _model(this, subnets.stacked, variables),
        "versions": provenance.versions(),
        "devices": provenance.devices(used | {"compose": 1}),
        "compile_seconds": compiled | {"compose": composition["compile_seconds"]},
        "subnets_phase": subnets_phase,
        "composed": composed,
        "finetune": finetune,
        "baseline": baseline,
        "speedup": speedup(
            subnets_phase,
            composed,
            finetune,
            baseline,
            classes=len(dataset.classes),
            test_images=len(dataset.test.labels),
        ),
    }


def run_one(settings: Settings, dataset: Dataset, keeper: Keeper, member: int) -> bool:
    """Train one sub-network by itself, as beside the others; return whether it is kept."""
    return subnetworks.train_one(factory.setup(settings, dataset, keeper), member)


def _evaluate_subnets(this: Setup, subnets: subnetworks.Outcome) -> tuple[SubnetsPhase, Bounds]:
    """Score the sub-networks on the test split, and bound the composed network by their logits."""
    test, count = this.dataset.test, this.settings.subnets
    recipe = factory.recipe(this.settings.training, this.dataset, Schedule())
    narrow = dcjax.decompose(this.exact, count)
    trainer = training.side_by_side(narrow, this.samples, recipe, count)
    state = trainer.start(subnets.stacked, this.key)
    logits = stage.exact_logits(trainer, test)(state)
    scores = [score(z, test.labels) for z in logits]
    results: SubnetsPhase = {
        "epochs": subnets.progress.epochs,
        "seconds": subnets.progress.seconds,
        "device_seconds": subnets.progress.device_seconds,
        "accuracy": [each.accuracy for each in scores],
        "cost": [each.cost for each in scores],
    }
    if subnets.diverged:
        results["diverged"] = subnets.diverged
    return results, _bounds(logits, test.labels, subnets.weights)


def _bounds(
    logits: Float[np.ndarray, "K N C"], labels: np.ndarray, weights: Float[Array, " K"] | None
) -> Bounds:
    """Bound the composed network by the logits of the sub-networks that it is composed of."""
    if weights is not None:
        logits = logits[np.asarray(weights) > 0]
    sums = dcjax.bounds_update(dcjax.BoundsSums(), jnp.asarray(logits), jnp.asarray(labels))
    means = dcjax.bounds_finish(sums)
    # The counts, because a fraction in float32 is not quite the count over N.
    return {
        "accuracy_lower": int(np.asarray(sums.right_lower)) / len(labels),
        "accuracy_upper": int(np.asarray(sums.right_upper)) / len(labels),
        "cost_lower": float(means.cost_lower),
        "cost_upper": float(means.cost_upper),
    }


def _compose(this: Setup, subnets: subnetworks.Outcome) -> tuple[PyTree, dict[str, float]]:
    """Compose the sub-networks and compare every feature map with theirs, once in a run.

    Returns:
      The composed network's variables, and what was measured.
    """
    stacked, weights = subnets.stacked, subnets.weights
    with this.keeper.opened("composed") as kept:
        if kept.found is not None:
            variables = kept.found.into(jax.eval_shape(dcjax.compose, stacked))
            return variables, kept.found.record["composition"]
        started = time.perf_counter()
        compose = jax.jit(dcjax.compose).lower(stacked, weights=weights).compile()
        compiled = time.perf_counter()
        variables = jax.block_until_ready(compose(stacked, weights=weights))
        measured = {
            "compile_seconds": compiled - started,
            "seconds": time.perf_counter() - compiled,
            "feature_error": _feature_error(this, stacked, weights),
        }
        this.keeper.log(phase="composed", **measured)
        kept.save(0, variables, {"composition": measured}, finished=True)
        return variables, measured


def _feature_error(
    this: Setup, stacked: dcjax.Stacked, weights: Float[Array, " K"] | None
) -> float:
    """Return the largest error of the composed network's feature maps; NaN if all are zero or NaN.

    Any error is tolerated: stopping here would lose the training that is done.
    """
    with jax.default_matmul_precision("highest"):
        try:
            report = dcjax.verify(
                this.exact,
                stacked,
                this.images,
                samples=this.samples,
                tolerance=math.inf,
                weights=weights,
            )
        except ValueError:
            return math.nan
        return report.error


def _evaluation(this: Setup) -> stage.Evaluate:
    """Return the function that scores the global network on the test split."""
    recipe = factory.recipe(this.settings.training, this.dataset, Schedule())
    exact = training.data_parallel(this.exact, this.samples, recipe)
    logits = stage.exact_logits(exact, this.dataset.test)

    def evaluate(state: training.TrainState) -> Score:
        return score(logits(state), this.dataset.test.labels)

    return evaluate


def _finetune(
    this: Setup, variables: PyTree, subnets: subnetworks.Outcome, evaluate: stage.Evaluate
) -> stage.Progress:
    """Train the composed network, from its composed momenta if they are carried over."""
    chosen, transfer = this.settings.training, this.settings.transfer
    schedule = Schedule(
        chosen.finetune_epochs, this.settings.finetune_rate, transfer.finetune_warmup_epochs
    )
    params, head = subnets.stacked["params"], this.settings.head_rate
    slower = [] if head == 1 else [training.scale_blocks(params, head=head)]
    recipe = factory.recipe(chosen, this.dataset, schedule, *slower)
    opt_state = None
    if transfer.carry_momentum:
        narrow = factory.recipe(chosen, this.dataset, schedule).optimizer
        past = dcjax.compose_opt_state(narrow, subnets.opt_state, params, weights=subnets.weights)
        opt_state = optax.tree_utils.tree_set(
            jax.jit(recipe.optimizer.init)(variables["params"]),
            trace=optax.tree_utils.tree_get(past, "trace"),
        )
    return _train(this, "finetune", variables, recipe, schedule.epochs, evaluate, opt_state)


def _train_baseline(this: Setup, evaluate: stage.Evaluate) -> stage.Progress:
    """Train the global network from scratch."""
    chosen = this.settings.training
    schedule = Schedule(chosen.baseline_epochs, chosen.learning_rate, chosen.baseline_warmup_epochs)
    # XLA's optimisation of the random numbers takes many times as long as computing them once.
    init = jax.jit(this.exact.init, compiler_options={"xla_backend_optimization_level": 1})
    variables = init(this.keys("baseline")[0], this.samples.join(this.images[:2]))
    recipe = factory.recipe(chosen, this.dataset, schedule)
    return _train(this, "baseline", variables, recipe, schedule.epochs, evaluate)


def _train(
    this: Setup,
    name: str,
    variables: PyTree,
    recipe: training.Recipe,
    epochs: int,
    evaluate: stage.Evaluate,
    opt_state: PyTree = None,
) -> stage.Progress:
    """Train the global network from these variables."""
    trainer = training.data_parallel(this.network, this.samples, recipe)
    plan = stage.Plan(
        name,
        factory.STAGES[name],
        trainer,
        variables,
        this.keys(name)[1],
        epochs,
        evaluate,
        every=this.settings.training.evaluate_every,
        opt_state=opt_state,
    )
    _, progress = stage.train(plan, this.dataset.train, this.keeper)
    return progress


def _results(progress: stage.Progress) -> GlobalPhase:
    return {
        "epochs": progress.epochs,
        "seconds": progress.seconds,
        "device_seconds": progress.device_seconds,
        "accuracy": progress.curve[-1]["accuracy"],
        "cost": progress.curve[-1]["cost"],
        "curve": list(progress.curve),
    }


def _model(this: Setup, stacked: dcjax.Stacked, variables: PyTree) -> Model:
    def parameters(variables: PyTree) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    chosen = this.settings.network
    return {
        "name": chosen.model,
        "depth": chosen.depth,
        "width": chosen.width,
        "classes": len(this.dataset.classes),
        "samples": chosen.samples,
        "precision": factory.precision(chosen),
        "convolutions": "jax" if this.exact.conv_general_dilated is None else "native",
        "parameters": parameters(variables),
        "subnet_parameters": parameters(stacked[0]),
    }
