"""The whole method in one call."""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, Shaped

from dcjax import training
from dcjax._bounds import Bounds, bounds
from dcjax._checks import check_subnets
from dcjax._compose.opt_state import compose_opt_state
from dcjax._compose.stacked import Stacked
from dcjax._linen.decompose import DEFAULT_FIELDS
from dcjax._linen.network import samples_or_replicate
from dcjax._linen.under import check_module
from dcjax._linen.verify import Report
from dcjax.method._arrays import check_alike, check_labels, continuous, split_of
from dcjax.method._defaults import adamw, call_kwargs, moments, normaliser, sizes
from dcjax.method._journal import Folder, digest
from dcjax.method._model import Model
from dcjax.method._road import STAGES, Road
from dcjax.method._stage import Plan, Progress, run_stage
from dcjax.samples import Samples

# Images (N, …) and labels (N,); one N for each pair, which a name would tie to the other's.
Pair = tuple[Shaped[Array | np.ndarray, "_ ..."], Int[Array | np.ndarray, "_"]]


class Result(NamedTuple):
    """The outcome of `transfer`.

    Attributes:
      network: the global network.
      variables: its variables after fine-tuning.
      stacked: the trained sub-networks' variables.
      bounds: the composed network's loss and accuracy before fine-tuning, with their bounds.
      report: the comparison of the composed network's feature maps with the sub-networks'; None if
        all are zero or NaN.
      history: seconds, device seconds, accuracy and cost (the loss, in nats, on the test split) of
        the stages `subnets`, `composed`, `finetune` and, if it was trained, `baseline`.
      model: predicts with any of the networks, and saves them.
    """

    network: nn.Module
    variables: PyTree
    stacked: Stacked
    bounds: Bounds
    report: Report | None
    history: dict[str, Any]
    model: Model

    def predict(self, images: Shaped[Array | np.ndarray, "N ..."]) -> Float[np.ndarray, "N C"]:
        """Return the fine-tuned network's probabilities for images as they were for training."""
        return self.model.predict(images)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write all networks into a folder for `dcjax.load_run`, with a model card."""
        self.model.save(folder)

    def __repr__(self) -> str:
        rows = []
        for name, stage in self.history.items():
            cells = zip(np.atleast_1d(stage["accuracy"]), np.atleast_1d(stage["cost"]), strict=True)
            each = ", ".join(f"{100 * accuracy:.2f} % ({cost:.3f})" for accuracy, cost in cells)
            rows.append(f"{name:9} {stage['seconds']:7.1f} s  {each}")
        return "test accuracy (loss) after each stage:\n" + "\n".join(rows)


def transfer(
    network: nn.Module,
    train: Pair,
    test: Pair,
    subnets: int = 4,
    *,
    fields: Sequence[str] = DEFAULT_FIELDS,
    samples: Samples | None = None,
    optimizer: optax.GradientTransformation | None = None,
    learning_rate: float = 1e-3,
    batch_size: int | None = None,
    epochs: tuple[int, int] | None = None,
    augment: Callable[[Array, Array], Array] = training.no_augment,
    normalise: Callable[[Array], Array] | None = None,
    baseline: bool = False,
    progress: bool = True,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Result:
    """Train K sub-networks side by side, compose them, verify, fine-tune the global network.

    The sub-networks are trained without communication, on all devices. One optimiser runs through
    both stages: its state is composed with the variables (`compose_opt_state`). A running average
    of the variables over about 20 steps is evaluated and handed on. In a job of several processes
    each trains all sub-networks, and they fine-tune together.

    Args:
      network: the global network, a Flax Linen module whose call takes a batch of images and gives
        logits. If the call takes `train`, `training`, `is_training` or `deterministic`, it is told.
      train: images (N, …) and labels (N,), integers from 0 on.
      test: likewise; evaluated after every epoch, and never trained on.
      subnets: K.
      fields: the network's fields that carry width (see `decompose`).
      samples: what each sub-network sees (`dcjax.samples`); by default the whole image.
      optimizer: any optax transformation; its schedules count the steps of both stages. By default
        AdamW: warm-up over half an epoch, at most a tenth of all steps, then `learning_rate`, and
        in fine-tuning a cosine decay to zero.
      learning_rate: of the default optimiser.
      batch_size: images a step; by default a power of two near N/80, from 8 to 128.
      epochs: of the sub-networks and of fine-tuning. By default the sub-networks take about 600
        steps, in 4 to 100 epochs, and fine-tuning takes a quarter as many epochs.
      augment: changes a batch of training images at random, such as `training.crop_and_flip` for
        photographs; by default nothing is changed.
      normalise: from images to the network's input. By default images of uint8 or floats get mean 0
        and variance 1 in each channel (the last axis), as measured on the training images; other
        integers, such as tokens, stay as they are.
      baseline: also train the global network from scratch, for the epochs of both stages together.
      progress: print a line after every epoch, on stderr.
      folder: keeps checkpoints; the same call continues from there if it was interrupted. In one
        process only.
      seed: of everything random.

    Returns:
      The result: `predict(images)`, `variables`, `bounds`, `report`, `history`, `save(folder)`.

    Raises:
      NotSeparableError: the network cannot be composed exactly; raised before anything is trained.
      ValueError: the data do not fit each other or the network, the network has no head, K does not
        divide a width, the folder holds another run, or a folder is given in several processes.
      FloatingPointError: a sub-network's loss became NaN or infinite.

    >>> import dcjax, numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 3, 96)
    >>> images = rng.normal(size=(96, 8, 8, 3)) + labels[:, None, None, None]
    >>> network = dcjax.models.CNN(width=8, num_classes=3, stages=1, convolutions=1)
    >>> train, test = (images[:64], labels[:64]), (images[64:], labels[64:])
    >>> result = dcjax.transfer(network, train, test, subnets=2, epochs=(2, 1), progress=False)
    >>> result.predict(images[:5]).shape
    (5, 3)
    """
    check_module(network)
    subnets = check_subnets(subnets)
    samples = samples_or_replicate(samples, subnets)
    splits = split_of("train", train), split_of("test", test)
    images = splits[0].images
    check_alike(*splits)
    batch_size, epochs = sizes(len(images), batch_size, epochs)
    steps = training.steps_per_epoch(len(images), batch_size)
    measured = moments(images) if normalise is None and continuous(images) else None
    if measured is not None and not np.isfinite(splits[1].images).all():
        raise ValueError("the test images hold NaN or infinite numbers")
    first, last = (count * steps for count in epochs)
    if optimizer is None:
        chosen = adamw(learning_rate, first, last, warmup=steps // 2)
    else:
        chosen = optimizer
    recipe = training.Recipe(
        chosen,
        batch_size=batch_size,
        augment=augment,
        normalise=normaliser(measured, images.dtype) if normalise is None else normalise,
        train_kwargs=call_kwargs(network, train=True),
        eval_kwargs=call_kwargs(network, train=False),
        average=0.95,
    )
    settings = {
        "network": re.sub(r" at 0x[0-9a-f]+", "", repr(network)),
        "fields": list(fields),
        "subnets": subnets,
        "samples": samples.name,
        "optimizer": "adamw" if optimizer is None else "given",
        "learning_rate": learning_rate if optimizer is None else None,
        "batch_size": batch_size,
        "epochs": list(epochs),
        "seed": seed,
        "train_images": len(images),
        "test_images": len(splits[1].images),
        "data": digest(*splits[0], *splits[1]),
    }
    journal = Folder(None if folder is None else Path(folder), settings, progress)
    road = Road(
        network, network, subnets, samples, *splits, recipe, jax.random.key(seed), journal, fields
    )
    journal.say(
        f"training images: {len(images)}, test images: {len(splits[1].images)}, sub-networks: "
        f"{subnets}, epochs: {epochs[0]} and then {epochs[1]} of fine-tuning, steps an epoch: "
        f"{steps}, images a step: {batch_size}"
    )

    start = road.initial_subnets()
    check_labels(road, start)
    stacked, past, trained = _subnets(road, start, epochs[0])
    phase, logits = road.score_subnets(stacked, trained)
    composed, composition, report = road.compose(stacked)
    evaluate = road.evaluation()
    tuned = recipe._replace(optimizer=_with_slower_head(chosen, stacked))
    variables, finetuned = road.train_global(
        "finetune",
        composed,
        tuned,
        epochs[1],
        evaluate,
        opt_state=_continued(chosen, tuned.optimizer, past, stacked, composed),
    )
    finetune = finetuned.phase()
    history: dict[str, Any] = {
        "subnets": phase,
        "composed": road.composed_phase(logits, composition, finetune["curve"][0]),
        "finetune": finetune,
    }
    weights = {"subnets": stacked, "composed": composed, "finetuned": variables}
    if baseline:
        whole = optimizer
        if whole is None:
            whole = adamw(learning_rate, 0, first + last, warmup=3 * steps // 2)
        weights["baseline"], scratch = road.train_global(
            "baseline",
            road.from_scratch(),
            recipe._replace(optimizer=whole),
            sum(epochs),
            evaluate,
        )
        history["baseline"] = scratch.phase()
    settings.pop("network")
    model = Model(
        network,
        weights,
        samples,
        shape=images.shape[1:],
        dtype=images.dtype.name,
        fields=fields,
        moments=measured,
        normalise=normalise,
        call=recipe.eval_kwargs,
        batch_size=batch_size,
        about={"settings": settings, "history": history},
    )
    return Result(
        network,
        variables,
        stacked,
        bounds(jnp.asarray(logits), jnp.asarray(splits[1].labels)),
        report or road.verified(stacked),
        history,
        model,
    )


class _Stop:
    """A watch that stops at the first sub-network whose loss is not finite."""

    def after_epoch(self, state: training.TrainState, done: training.Epoch) -> None:
        del state
        bad = ~np.isfinite(done.losses)
        if bad.any():
            raise FloatingPointError(
                f"the loss of sub-network {', '.join(map(str, np.flatnonzero(bad.any(axis=0))))} "
                f"became NaN or infinite in epoch {done.epoch}: give a lower learning_rate, or an "
                "optimizer with a longer warm-up"
            )

    def before_save(self, kept: Any, state: training.TrainState) -> None:
        pass

    def record(self) -> dict[str, Any]:
        return {}

    def resume(self, record: dict[str, Any]) -> None:
        pass


def _subnets(road: Road, start: Stacked, epochs: int) -> tuple[Stacked, PyTree, Progress]:
    """Train the sub-networks; return their variables, the optimiser's state, and the progress."""
    narrow = road.narrow(road.network)
    trainer = training.side_by_side(narrow, road.samples, road.recipe, road.subnets)
    plan = Plan(
        "subnets",
        STAGES["subnets"],
        trainer,
        start,
        road.keys("subnets")[1],
        epochs,
        road.subnets_evaluation(),
        watch=_Stop(),
    )
    state, progress = run_stage(plan, road.train, road.journal)
    return trainer.finish(state), trainer.to_host(state.opt_state), progress


def _with_slower_head(
    optimizer: optax.GradientTransformation, stacked: Stacked
) -> optax.GradientTransformation:
    """Return the optimiser of fine-tuning: above four sub-networks the head is slower."""
    head = min(1.0, 4 / len(stacked))
    return optax.chain(optimizer, training.scale_blocks(stacked["params"], head=head))


def _continued(
    optimizer: optax.GradientTransformation,
    whole: optax.GradientTransformation,
    past: PyTree,
    stacked: Stacked,
    composed: PyTree,
) -> PyTree:
    """Return the composed state of the optimiser for fine-tuning."""
    fresh = jax.jit(whole.init)(composed["params"])
    try:
        return (compose_opt_state(optimizer, past, stacked["params"]), *fresh[1:])
    except ValueError as error:
        warnings.warn(f"fine-tuning starts the optimiser anew: {error}", RuntimeWarning, 3)
        return fresh
