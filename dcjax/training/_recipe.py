"""The recipe: optimiser, batches, augmentation, loss."""

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import optax
from jaxtyping import Array

from dcjax._checks import shown
from dcjax.training._images import no_augment, standardise


class Recipe(NamedTuple):
    """Everything between a batch of uint8 images and the update of the parameters.

    * `optimizer`: any optax transformation.
    * `batch_size`: examples a step (for every sub-network), and examples a batch in evaluation.
    * `augment`: a pure function of a key and uint8 images (N, H, W, C), to others of that kind; by
      default none. `crop_and_flip` suits photographs, whose mirror images keep their class.
    * `normalise`: a pure function from uint8 images to floating point.
    * `loss`: from logits (N, C) and labels (N,) to one loss an example; a step takes the mean.
    * `train_kwargs`, `eval_kwargs`: keyword arguments of `network.apply`.
    * `rngs`: the names of the random streams that `network.apply` gets in training.
    * `average`: β of the running average of all variables, `a ← β a + (1 − β) v` after every step,
      over about 1/(1 − β) steps, starting from the first variables. Evaluation and `finish` use it
      in place of the last variables. 0 keeps none.

    >>> recipe = Recipe(optax.sgd(0.1), batch_size=32)
    >>> dict(recipe.train_kwargs)
    {'train': True}
    """

    optimizer: optax.GradientTransformation
    batch_size: int = 128
    augment: Callable[[Array, Array], Array] = no_augment
    normalise: Callable[[Array], Array] = standardise()
    loss: Callable[[Array, Array], Array] = optax.losses.softmax_cross_entropy_with_integer_labels
    train_kwargs: Mapping[str, Any] = MappingProxyType({"train": True})
    eval_kwargs: Mapping[str, Any] = MappingProxyType({})
    rngs: tuple[str, ...] = ("dropout",)
    average: float = 0.0


def of_classes(recipe: Recipe) -> bool:
    """Return whether the loss is the default one, of logits of classes."""
    return recipe.loss is Recipe._field_defaults["loss"]


_FUNCTIONS = {
    "augment": "dcjax.training.no_augment leaves images as they are",
    "normalise": "lambda x: x leaves images as they are",
    "loss": "such as optax.softmax_cross_entropy_with_integer_labels",
}


def check_recipe(recipe: Any) -> None:
    """Raise an error unless the recipe is a `Recipe` whose parts can be called as they are."""
    if not isinstance(recipe, Recipe):
        raise TypeError(
            "expected a recipe, dcjax.training.Recipe(optimizer, …), in the place after the "
            f"samples, got {shown(recipe)}"
        )
    optimizer = recipe.optimizer
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(
            f"Recipe(optimizer=) must be an optax transformation, such as optax.adam(1e-3), got "
            f"{shown(optimizer)}"
        )
    for name, remedy in _FUNCTIONS.items():
        if not callable(value := getattr(recipe, name)):
            raise TypeError(f"Recipe({name}=) must be a function, got {shown(value)}; {remedy}")
    if isinstance(recipe.rngs, str):
        raise TypeError(f"Recipe(rngs=) must be a tuple of names, ({recipe.rngs!r},), got a str")
    try:
        whole = operator.index(recipe.batch_size) >= 1
    except TypeError:
        whole = False
    if not whole:
        raise ValueError(
            f"Recipe(batch_size=) must be an int of at least 1, got {shown(recipe.batch_size)}"
        )
    # Between float32's last number below 1 and 1, the average would stay at the first variables.
    if not (isinstance(recipe.average, int | float) and 0 <= np.float32(recipe.average) < 1):
        raise ValueError(
            f"expected a recipe with 0 <= average < 1, got {shown(recipe.average)}; 0.99 averages "
            "about the last 100 steps"
        )


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the training steps of an epoch: whole batches only, the rest is left out.

    Args:
      examples: training examples.
      batch_size: examples a step.

    Returns:
      `examples // batch_size`.

    Raises:
      ValueError: the examples do not fill one batch.

    >>> steps_per_epoch(50_000, 128)
    390
    """
    if not 1 <= batch_size <= examples:
        raise ValueError(
            "an epoch needs at least one whole batch: expected 1 <= batch_size <= examples, got "
            f"batch_size = {batch_size} and {examples} examples; take a smaller batch_size"
        )
    return examples // batch_size
