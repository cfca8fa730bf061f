"""Trained networks that predict, and their folder on the disk."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, Shaped

from dcjax import models, native, training
from dcjax._files.save import save
from dcjax._linen.decompose import decompose
from dcjax._linen.under import how_of
from dcjax.atomic import replacing
from dcjax.method._card import card
from dcjax.method._defaults import Moments, normaliser
from dcjax.method._history import json_values
from dcjax.samples import Samples

FOLDER, CONFIG, CARD = "model", "config.json", "README.md"
FORMAT = "dcjax run, version 1"
STAGES = {
    "subnets": "subnets",
    "composed": "composed",
    "finetuned": "finetune",
    "baseline": "baseline",
}
"""The stage at whose end each network was measured."""


class Model:
    """The networks of a run, with what prediction needs.

    Attributes:
      network: the global network.
      subnets: K.
      fields: its fields that carry width.
      samples: what each sub-network sees.
      shape, dtype: of an image, as it was given for training.
      moments: the means and standard deviations of the channels, which images are normalised by.
      normalise: another normalisation, a function; None for that by `moments`, or none.
      call: keyword arguments of the network's call in evaluation.
      batch_size: of evaluation.
      weights: the variables of `subnets`, `composed`, `finetuned` and maybe `baseline`.
      classes: the names of the classes; None if there are none.
      about: what the run recorded, JSON values: `history`, `settings`, the name of its `data`.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Mapping[str, PyTree],
        samples: Samples,
        *,
        shape: Sequence[int],
        dtype: str,
        fields: Sequence[str] = ("width",),
        moments: tuple[Sequence[float], Sequence[float]] | None = None,
        normalise: Callable[[Array], Array] | None = None,
        call: Mapping[str, Any] | None = None,
        batch_size: int = 128,
        classes: Sequence[str] | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        self.network = network
        self.weights = weights
        self.samples = samples
        self.subnets = samples.subnets
        self.shape, self.dtype = tuple(shape), dtype
        self.fields = tuple(fields)
        self.moments = None if moments is None else Moments(*map(tuple, moments))
        self.normalise = normalise
        self.call = dict(call or {})
        self.batch_size = batch_size
        self.classes = None if classes is None else tuple(classes)
        self.about = dict(about or {})

    def __repr__(self) -> str:
        weights = ", ".join(self.weights)
        return f"Model of {self.subnets} sub-networks: {weights}\n{self.network}"

    def variables(self, which: str = "finetuned") -> PyTree:
        """Return the variables of `subnets`, `composed`, `finetuned` or `baseline`."""
        if which not in self.weights:
            raise ValueError(f"expected one of {', '.join(self.weights)}, got {which!r}")
        return self.weights[which]

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
        if images.shape[1:] != self.shape or images.dtype != self.dtype or not len(images):
            raise ValueError(
                f"expected images {self.dtype}(N, {', '.join(map(str, self.shape))}), as for "
                f"training, got {images.dtype}{images.shape}"
            )
        trainer, state = self._ready(which, min(self.batch_size, len(images)))
        with jax.default_matmul_precision("highest"):
            return training.predict(trainer, state, images)

    @functools.lru_cache(maxsize=8)  # noqa: B019 – a few compiled programs for as long as it lives
    def _ready(self, which: str, batch_size: int) -> tuple[training.Trainer, training.TrainState]:
        recipe = training.Recipe(
            optax.identity(),
            batch_size=batch_size,
            normalise=self.normalise or normaliser(self.moments, np.dtype(self.dtype)),
            eval_kwargs=self.call,
        )
        if which == "subnets":
            narrow = decompose(self.network, self.subnets, self.fields)
            trainer = training.side_by_side(narrow, self.samples, recipe, self.subnets)
        else:
            # In a job of several processes each predicts by itself, whichever images it has.
            own = jax.local_devices()
            trainer = training.data_parallel(self.network, self.samples, recipe, devices=own)
        return trainer, trainer.start(self.variables(which), jax.random.key(0))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder for `dcjax.load_run`: weights, `config.json`, and a model card.

        Args:
          folder: created if missing; files of the same names in it are replaced.

        Raises:
          OSError: it cannot be written.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        digests = {}
        for which, variables in self.weights.items():
            save(place / _file(which), variables)
            digests[which] = file_digest(place / _file(which))
        config = self._config(digests)
        for name, text in ((CARD, card(config)), (CONFIG, json.dumps(config, indent=2) + "\n")):
            with replacing(place / name) as file:
                file.write(text.encode())

    def _config(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """Return what prediction needs and the weights do not say, as JSON values.

        Args:
          digests: of the files of the weights.
        """
        history = self.about.get("history", {})
        kind = "measured" if self.moments else "none"
        mean, std = self.moments or (None, None)
        return json_values(
            {
                "format": FORMAT,
                "network": _described(self.network),
                "subnets": self.subnets,
                "fields": self.fields,
                "samples": self.samples.name,
                "layout": f"in the metadata of {_file('subnets')}",
                "images": {
                    "shape": self.shape,
                    "dtype": self.dtype,
                    "normalise": "custom" if self.normalise else kind,
                    "mean": mean,
                    "std": std,
                },
                "classes": self.classes,
                "call": self.call,
                "batch_size": self.batch_size,
                "parameters": _parameters(self.weights["finetuned"]),
                "subnet_parameters": _parameters(self.weights["subnets"]) // self.subnets,
                "weights": {
                    which: {"file": _file(which), "sha256": digests[which]}
                    | {
                        key: history[STAGES[which]][key]
                        for key in ("accuracy", "cost")
                        if STAGES[which] in history
                    }
                    for which in self.weights
                },
                "versions": versions(),
                "about": self.about,
            }
        )


def versions() -> dict[str, str]:
    """Return the versions of the packages that figures depend on.

    >>> list(versions())[:3]
    ['python', 'dcjax', 'jax']
    """
    import dcjax

    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        "dcjax": dcjax.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parameters(variables: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _file(which: str) -> str:
    return f"{which}.safetensors"


def _described(network: nn.Module) -> dict[str, Any]:
    """Return a network's class and, if it is one of `dcjax.models`, its settings."""
    kind, settings = type(network), None
    known = getattr(models, kind.__name__, None) is kind and how_of(network) is None
    if known and network.conv_general_dilated in (None, native.conv_general_dilated):
        settings = {
            field.name: getattr(network, field.name)
            for field in dataclasses.fields(network)
            if field.init and field.name not in ("parent", "name")
        }
        settings["dtype"] = np.dtype(settings["dtype"]).name
        is_jax = settings["conv_general_dilated"] is None
        settings["conv_general_dilated"] = "jax" if is_jax else "native"
        return {"class": f"dcjax.models.{kind.__name__}", "settings": settings}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "settings": None}
