"""Trained networks that predict, and their folder on the disk."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from dcjax import training
from dcjax._linen.decompose import decompose
from dcjax.method._defaults import Moments
from dcjax.samples import Samples


class Model:
    """The networks of a run, with what prediction needs.

    Attributes:
      network: the global network.
      subnets: K.
      classes: the names of the classes, None if there are none.
      about: what the run recorded: settings and results.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        subnets: int,
        fields: tuple[str, ...],
        samples: Samples,
        recipe: training.Recipe,
        moments: Moments | None,
        custom: bool,
        shape: tuple[int, ...],
        dtype: str,
        classes: tuple[str, ...] | None,
        weights: Mapping[str, PyTree],
        about: Mapping[str, Any],
    ):
        self.network = network
        self.subnets = subnets
        self.classes = classes
        self.about = dict(about)
        self._fields = fields
        self._samples = samples
        self._recipe = recipe
        self._moments = moments
        self._custom = custom
        self._shape = tuple(shape)
        self._dtype = dtype
        self._weights = weights

    def variables(self, which: str = "finetuned") -> PyTree:
        """Return the variables of `subnets`, `composed`, `finetuned` or `baseline`."""
        if which not in self._weights:
            raise ValueError(f"expected one of {', '.join(self._weights)}, got {which!r}")
        return self._weights[which]

    def predict(
        self, images: Shaped[Array | np.ndarray, "N ..."], which: str = "finetuned"
    ) -> Float[np.ndarray, "*K N C"]:
        """Return the probabilities of the classes.

        Args:
          images: as they were given for training, (N, …).
          which: the network, `finetuned`, `composed` or `baseline`; or `subnets` for each of them.

        Returns:
          Probabilities (N, C), or (K, N, C) of the sub-networks.

        Raises:
          ValueError: the images have another shape or dtype than those for training.
        """
        images = np.asarray(images)
        if images.dtype == np.float64:
            images = images.astype(np.float32)
        if images.shape[1:] != self._shape or images.dtype != self._dtype:
            raise ValueError(
                f"expected images {self._dtype}(N, {', '.join(map(str, self._shape))}), as for "
                f"training, got {images.dtype}{images.shape}"
            )
        trainer, state = self._ready(which, min(self._recipe.batch_size, max(len(images), 1)))
        with jax.default_matmul_precision("highest"):
            return training.predict(trainer, state, images)

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _ready(self, which: str, batch_size: int) -> tuple[training.Trainer, training.TrainState]:
        recipe = self._recipe._replace(batch_size=batch_size)
        if which == "subnets":
            narrow = decompose(self.network, self.subnets, self._fields)
            trainer = training.side_by_side(narrow, self._samples, recipe, self.subnets)
        else:
            trainer = training.data_parallel(self.network, self._samples, recipe)
        return trainer, trainer.start(self.variables(which), jax.random.key(0))
