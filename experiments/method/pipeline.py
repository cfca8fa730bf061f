"""The whole method: sub-networks, composition, fine-tuning, and the baseline beside it."""

from pathlib import Path
from typing import Any

import jax
import optax
from jaxtyping import PyTree

import dcjax
from dcjax import method
from experiments.data import Dataset
from experiments.method import factory, plan, reporting, subnetworks
from experiments.method.factory import Schedule, Setup
from experiments.report import write
from experiments.results.schema import Model, Results
from experiments.results.speedup import speedup
from experiments.run import provenance, workdir
from experiments.run.checkpointing import Keeper
from experiments.settings import naming
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
    sizes = plan.sizes(this)
    for line in plan.opening(this, sizes):
        keeper.say(line)
    road = this.road
    with keeper.voice.living(plan.stages(this, sizes), provenance.memory):
        subnets = subnetworks.train_all(this)
        kept = subnets.stacked, subnets.weights
        subnets_phase, logits = road.score_subnets(kept[0], subnets.progress, kept[1])
        variables, composition, _ = road.compose(*kept)
        evaluate = road.evaluation()
        tuned, finetuned = _finetune(this, variables, subnets, evaluate)
        whole, trained = _train_baseline(this, evaluate)
    if subnets.diverged:
        subnets_phase["diverged"] = subnets.diverged
    finetune, baseline = finetuned.phase(), trained.phase()
    composed = road.composed_phase(logits, composition, finetune["curve"][0])
    stages = {"subnets": subnets.progress, "finetune": finetuned, "baseline": trained}
    used = {name: progress.devices for name, progress in stages.items()}
    compiled = {name: progress.compile_seconds for name, progress in stages.items()}
    results: Results = {
        "dataset": dataset.name,
        "subnets": settings.subnets,
        "seed": settings.seed,
        "model": _model(this, sizes),
        "versions": method.versions(),
        "devices": provenance.devices(used | {"compose": 1}),
        "compile_seconds": compiled | {"compose": composition["compile_seconds"]},
        "operations_per_epoch": sizes.operations,
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
    weights = {"subnets": subnets.stacked, "composed": variables, "finetuned": tuned}
    if settings.training.baseline_epochs:
        weights["baseline"] = whole
    if jax.process_index() == 0:
        _save(this, weights, results)
        keeper.say("gathering what the report shows")
        write.keep(keeper.workdir, lambda: reporting.gather(this, weights), keeper.say)
    return results


def run_one(settings: Settings, dataset: Dataset, keeper: Keeper, member: int) -> bool:
    """Train one sub-network by itself, as beside the others; return whether it is kept."""
    this = factory.setup(settings, dataset, keeper)
    for line in plan.opening(this, plan.sizes(this)):
        keeper.say(line)
    with keeper.voice.living({}, provenance.memory):
        return subnetworks.train_one(this, member)


def _finetune(
    this: Setup, variables: PyTree, subnets: subnetworks.Outcome, evaluate: method.Evaluate
) -> tuple[PyTree, method.Progress]:
    """Train the composed network, from its composed momenta if they are carried over."""
    chosen, transfer = this.settings.training, this.settings.transfer
    schedule = Schedule(
        chosen.finetune_epochs, this.settings.finetune_rate, transfer.finetune_warmup_epochs
    )
    params, head = subnets.stacked["params"], this.settings.head_rate
    slower = [] if head == 1 else [dcjax.training.scale_blocks(params, head=head)]
    recipe = factory.recipe(chosen, this.dataset, schedule, *slower)
    opt_state = None
    if transfer.carry_momentum and chosen.optimizer == "sgd":
        narrow = factory.recipe(chosen, this.dataset, schedule).optimizer
        past = dcjax.compose_opt_state(narrow, subnets.opt_state, params, weights=subnets.weights)
        opt_state = optax.tree_utils.tree_set(
            jax.jit(recipe.optimizer.init)(variables["params"]),
            trace=optax.tree_utils.tree_get(past, "trace"),
        )
    return this.road.train_global(
        "finetune",
        variables,
        recipe,
        schedule.epochs,
        evaluate,
        every=chosen.evaluate_every,
        average_every=chosen.average_every,
        outer=factory.outer(chosen),
        opt_state=opt_state,
        remedy="a lower --finetune-rate",
    )


def _train_baseline(this: Setup, evaluate: method.Evaluate) -> tuple[PyTree, method.Progress]:
    """Train the global network from scratch."""
    chosen = this.settings.training
    schedule = Schedule(chosen.baseline_epochs, chosen.learning_rate, chosen.baseline_warmup_epochs)
    return this.road.train_global(
        "baseline",
        this.road.from_scratch(),
        factory.recipe(chosen, this.dataset, schedule),
        schedule.epochs,
        evaluate,
        every=chosen.evaluate_every,
        average_every=chosen.baseline_average_every,
        outer=factory.outer(chosen),
        remedy="a lower --learning-rate",
    )


def _save(this: Setup, weights: dict[str, PyTree], results: Results) -> None:
    """Leave the networks in the workdir, with what prediction needs and a model card."""
    dataset, road = this.dataset, this.road
    kind, folder, path = dataset.name.partition(":")
    name = kind + folder + Path(path).name  # where the images lay on this machine is left out
    stages: dict[str, Any] = {"subnets": results["subnets_phase"]}
    stages |= {name: results[name] for name in ("composed", "finetune", "baseline")}
    if not results["baseline"]["epochs"]:
        del stages["baseline"]
    settings = {key: v for key, v in naming.flat(this.settings).items() if key not in naming.PLACES}
    model = dcjax.Model(
        road.exact,
        weights,
        road.samples,
        shape=road.test.images.shape[1:],
        dtype="uint8",
        moments=(dataset.mean.tolist(), dataset.std.tolist()),
        batch_size=road.recipe.batch_size,
        classes=dataset.classes,
        about={
            "data": name,
            "train_images": len(road.train.labels),
            "test_images": len(road.test.labels),
            "settings": settings | {"dataset": name},
            "devices": results["devices"],
            "history": stages,
        },
    )
    folder = this.keeper.workdir / workdir.MODEL
    try:
        model.save(folder)
    except OSError as error:
        this.keeper.say(f"the model cannot be written to {folder}: {error.strerror}")


def _model(this: Setup, sizes: plan.Sizes) -> Model:
    chosen = this.settings.network
    native = getattr(this.road.exact, "conv_general_dilated", None) is not None
    return {
        "name": chosen.model,
        "depth": chosen.depth,
        "width": chosen.width,
        "classes": len(this.dataset.classes),
        "samples": chosen.samples,
        "precision": factory.precision(chosen),
        "convolutions": "native" if native else "jax",
        "parameters": sizes.parameters,
        "subnet_parameters": sizes.subnet_parameters,
    }
