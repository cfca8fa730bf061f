"""The stages of the method, from the sub-networks to the fine-tuned network and the baseline."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree, Shaped

from dcjax import training
from dcjax._bounds import BoundsSums, bounds_finish, bounds_update
from dcjax._compose.compose import compose as _compose
from dcjax._compose.stacked import Stacked
from dcjax._linen.decompose import DEFAULT_FIELDS, decompose
from dcjax._linen.network import init
from dcjax._linen.verify import Report, verify
from dcjax.method._history import Composed, CurveEntry, SubnetsPhase
from dcjax.method._journal import Journal
from dcjax.method._score import score
from dcjax.method._stage import Evaluate, Plan, Progress, Split, exact_logits, run_stage
from dcjax.samples import Samples
from dcjax.training._fit import several

STAGES = {"subnets": "sub-networks", "finetune": "fine-tuning", "baseline": "baseline"}
"""The stages of training: their names in the results, and their titles for people."""
VERIFIED = 64
"""Test images on which the composed network's feature maps are compared with the sub-networks'."""


class Road(NamedTuple):
    """The stages of one run, and the values that they share.

    Attributes:
      network: the global network in training's precision.
      exact: the same network in float32, in which everything is evaluated.
      subnets: K.
      samples: what each sub-network sees.
      recipe: how images are normalised and batched; its optimiser is not used.
      key: all random keys are derived from it.
      journal: keeps checkpoints and metrics, and speaks.
      fields: the network's fields that carry width.
    """

    network: nn.Module
    exact: nn.Module
    subnets: int
    samples: Samples
    train: Split
    test: Split
    recipe: training.Recipe
    key: Key[Array, ""]
    journal: Journal
    fields: Sequence[str] = DEFAULT_FIELDS

    def keys(self, stage: str) -> Key[Array, "2"]:
        """Return two random keys of a stage: for its initialisation, and for its training."""
        return jax.random.split(jax.random.fold_in(self.key, list(STAGES).index(stage)))

    def images(self, count: int = VERIFIED) -> Shaped[Array, "n ..."]:
        """Return the first test images, normalised."""
        return self.recipe.normalise(jnp.asarray(self.test.images[:count]))

    @property
    def call(self) -> dict[str, Any]:
        """The keyword arguments of the network's call in evaluation."""
        return dict(self.recipe.eval_kwargs)

    def narrow(self, network: nn.Module) -> nn.Module:
        """Return the sub-network of `network` or `exact`."""
        return decompose(network, self.subnets, self.fields)

    def initial_subnets(self) -> Stacked:
        """Return the K sub-networks as they are initialised."""
        self.journal.say("sub-networks: finding the layout, initialising")
        key = self.keys("subnets")[0]
        how: Mapping[str, Any] = {"samples": self.samples, "fields": self.fields, **self.call}
        return init(self.exact, self.subnets, key, self.images(2), **how)

    def score_subnets(
        self,
        stacked: Stacked,
        progress: Progress,
        weights: Float[Array, " K"] | None = None,
    ) -> tuple[SubnetsPhase, Float[np.ndarray, "weighed N C"]]:
        """Score the trained sub-networks on the test split.

        Args:
          progress: of their training.
          weights: the head's; None for a mean.

        Returns:
          The results of their training, and the logits of those that the head weighs.
        """
        self.journal.say("sub-networks: evaluating")
        trainer = self._exact_subnets()
        logits = exact_logits(trainer, self.test)(trainer.start(stacked, self.key))
        scores = [score(z, self.test.labels) for z in logits]
        each = several(np.array([100 * one.accuracy for one in scores]), ".2f")
        self.journal.say(f"each sub-network: test accuracy {each} %")
        phase: SubnetsPhase = {
            "epochs": progress.epochs,
            "seconds": progress.seconds,
            "device_seconds": progress.device_seconds,
            "accuracy": [each.accuracy for each in scores],
            "cost": [each.cost for each in scores],
            "curve": list(progress.curve),
        }
        return phase, logits if weights is None else logits[np.asarray(weights) > 0]

    def compose(
        self, stacked: Stacked, weights: Float[Array, " K"] | None = None
    ) -> tuple[PyTree, dict[str, float], Report | None]:
        """Compose the sub-networks and compare every feature map with theirs, once in a run.

        Returns:
          The composed network's variables; what was measured: seconds, and `feature_error`; and the
          comparison, None if it was made earlier or all feature maps are zero or NaN.
        """
        with self.journal.opened("composed") as kept:
            if kept.found is not None:
                variables = kept.into(jax.eval_shape(_compose, stacked))
                return variables, kept.found.record["composition"], None
            self.journal.say("composing, and comparing the feature maps of all layers")
            started = time.perf_counter()
            composed = jax.jit(_compose).lower(stacked, weights=weights).compile()
            compiled = time.perf_counter()
            variables = jax.block_until_ready(composed(stacked, weights=weights))
            seconds = time.perf_counter() - compiled
            report = self.verified(stacked, weights)
            measured = {
                "compile_seconds": compiled - started,
                "seconds": seconds,
                "feature_error": report.error if report else math.nan,
            }
            self.journal.log(phase="composed", **measured)
            kept.save(0, variables, {"composition": measured}, finished=True)
            return variables, measured, report

    def verified(
        self, stacked: Stacked, weights: Float[Array, " K"] | None = None
    ) -> Report | None:
        """Compare the composed network's feature maps; return None if all are zero or NaN.

        Any error is tolerated: stopping here would lose the training that is done.
        """
        how: Mapping[str, Any] = {"samples": self.samples, "fields": self.fields, **self.call}
        with jax.default_matmul_precision("highest"):
            try:
                return verify(
                    self.exact, stacked, self.images(), tolerance=math.inf, weights=weights, **how
                )
            except ValueError:
                return None

    def _exact_subnets(self, members: Sequence[int] | None = None) -> training.Trainer:
        exact = self.narrow(self.exact)
        return training.side_by_side(
            exact, self.samples, self.recipe, self.subnets, members=members
        )

    def subnets_evaluation(self, members: Sequence[int] | None = None) -> Evaluate:
        """Return the function that scores sub-networks on the test split, each by itself.

        Args:
          members: those that the state holds; None for all.
        """
        logits = exact_logits(self._exact_subnets(members), self.test)

        def evaluate(state: training.TrainState) -> dict[str, list[float]]:
            accuracies, costs = zip(
                *(score(each, self.test.labels) for each in logits(state)), strict=True
            )
            return {"accuracy": list(accuracies), "cost": list(costs)}

        return evaluate

    def evaluation(self) -> Evaluate:
        """Return the function that scores the global network on the test split."""
        exact = training.data_parallel(self.exact, self.samples, self.recipe)
        logits = exact_logits(exact, self.test)

        def evaluate(state: training.TrainState) -> dict[str, float]:
            return score(logits(state), self.test.labels)._asdict()

        return evaluate

    def from_scratch(self) -> PyTree:
        """Return the variables that the baseline starts from."""

        def initial(key: Key[Array, ""], x: Array) -> PyTree:
            return self.exact.init(key, x, **self.call)

        # XLA's optimisation of the random numbers takes many times as long as computing them once.
        compiled = jax.jit(initial, compiler_options={"xla_backend_optimization_level": 1})
        return compiled(self.keys("baseline")[0], self.samples.join(self.images(2)))

    def train_global(
        self,
        name: str,
        variables: PyTree,
        recipe: training.Recipe,
        epochs: int,
        evaluate: Evaluate,
        *,
        average_every: int | None = None,
        outer: optax.GradientTransformation | None = None,
        **plan: Any,
    ) -> tuple[PyTree, Progress]:
        """Train the global network from these variables: the stage `finetune`, or `baseline`.

        Args:
          average_every: train a copy on each device, and average the copies every so many steps
            (`training.rarely_averaged`) and for each evaluation; 0 at the end only. None shares
            each step among the devices.
          outer: the outer optimiser of the averages.
          **plan: further fields of the `Plan`.

        Returns:
          The trained variables, and the progress.
        """
        trainer = whole = training.data_parallel(self.network, self.samples, recipe)
        if average_every is not None:
            every = average_every or sys.maxsize
            trainer = training.rarely_averaged(
                self.network, self.samples, recipe, every, outer=outer
            )

        def of_average(state: training.TrainState) -> Mapping[str, Any]:
            return evaluate(whole.start(trainer.finish(state), self.key))

        state, progress = run_stage(
            Plan(
                name,
                STAGES[name],
                trainer,
                variables,
                self.keys(name)[1],
                epochs,
                evaluate if average_every is None else of_average,
                **plan,
            ),
            self.train,
            self.journal,
        )
        return trainer.finish(state), progress

    def composed_phase(
        self,
        logits: Float[np.ndarray, "K N C"],
        composition: dict[str, float],
        first: CurveEntry,
    ) -> Composed:
        """Return the results of the composition.

        Args:
          logits: of the sub-networks that are composed.
          composition: from `compose`.
          first: the evaluation before fine-tuning.
        """
        labels = self.test.labels
        sums = bounds_update(BoundsSums(), jnp.asarray(logits), jnp.asarray(labels))
        means = bounds_finish(sums)
        return {
            "accuracy": first["accuracy"],
            "cost": first["cost"],
            # The counts, because a fraction in float32 is not quite the count over N.
            "accuracy_lower": int(np.asarray(sums.right_lower)) / len(labels),
            "accuracy_upper": int(np.asarray(sums.right_upper)) / len(labels),
            "cost_lower": float(means.cost_lower),
            "cost_upper": float(means.cost_upper),
            "seconds": composition["seconds"],
            "feature_error": composition["feature_error"],
        }
