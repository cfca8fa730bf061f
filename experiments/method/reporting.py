"""Gathers from the trained networks what a run's report needs beside the results."""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PyTree

import dcjax
from dcjax import training
from experiments.method.factory import Setup
from experiments.report import evidence
from experiments.report.evidence import Evidence


def gather(this: Setup, weights: Mapping[str, PyTree]) -> Evidence:
    """Gather the evidence of a run.

    Args:
      this: what the stages share.
      weights: the trained `subnets`, and the variables of the global networks: `composed`,
        `finetuned` and, if it was trained, `baseline`.
    """
    road, count = this.road, evidence.SHOWN_IMAGES
    test, classes = road.test, this.dataset.classes
    # Of several processes one writes the report.
    trainer = training.data_parallel(
        road.exact, road.samples, road.recipe, devices=jax.local_devices()
    )
    data = trainer.place(*test)

    def confusion(variables: PyTree) -> np.ndarray:
        logits = training.evaluate(trainer, trainer.start(variables, road.key), data)
        return evidence.confusion(test.labels, logits.argmax(axis=-1), len(classes))

    names = {"finetuned": "fine-tuned", "baseline": "baseline"}
    stacked, before, after = (weights[name] for name in ("subnets", "composed", "finetuned"))
    views = road.samples.split(road.images(count))
    said = dcjax.apply(road.narrow(road.exact), stacked, views)
    return Evidence(
        classes=classes,
        images=test.images[:count],
        labels=test.labels[:count],
        views=np.asarray(views, np.float32),
        said=np.asarray(said).argmax(axis=-1),
        confusion={names[name]: confusion(weights[name]) for name in names if name in weights},
        blocks=evidence.block_sizes(
            stacked.layout["params"], before["params"], jax.device_get(after["params"])
        ),
    )
