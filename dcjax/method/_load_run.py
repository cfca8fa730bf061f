"""The networks of a run, read from the folder that `Model.save` writes."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from dcjax import models, native
from dcjax._files.save import load
from dcjax.method._defaults import Moments
from dcjax.method._model import CONFIG, FOLDER, FORMAT, Model, file_digest
from dcjax.samples import make


def load_run(
    folder: str | os.PathLike[str],
    *,
    network: nn.Module | None = None,
    normalise: Callable[[Array], Array] | None = None,
) -> Model:
    """Return the networks that a run has left, ready to predict.

    The weights are read when they are first used, and checked against their digests.

    Args:
      folder: the workdir of a run of the experiments, its folder `model`, or the folder of a
        result's `save`.
      network: the global network, if it is not one of `dcjax.models`: code that a file names is not
        imported.
      normalise: the function that was given for training, if one was.

    Returns:
      The model: `predict(images)`, `variables(which)`, `network`, `classes`.

    Raises:
      FileNotFoundError: the folder holds no model; a run writes it at its end.
      ValueError: `config.json` is damaged or of another version, or the network or the
        normalisation is not in it.

    >>> import dcjax, jax, tempfile
    >>> network = dcjax.models.CNN(width=8, num_classes=3, stages=1)
    >>> stacked = dcjax.init(network, 2, jax.random.key(0), np.ones((1, 8, 8, 3)))
    >>> weights = {"subnets": stacked, "finetuned": dcjax.compose(stacked)}
    >>> samples = dcjax.samples.replicate(2)
    >>> model = dcjax.Model(network, weights, samples, shape=(8, 8, 3), dtype="float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(folder)
    ...     dcjax.load_run(folder).predict(np.ones((5, 8, 8, 3))).shape
    (5, 3)
    """
    places = [place for place in (Path(folder, FOLDER), Path(folder)) if (place / CONFIG).is_file()]
    if not places:
        raise FileNotFoundError(
            f"no model in {os.fspath(folder)}: expected {FOLDER}/{CONFIG} or {CONFIG}, which a run "
            "writes when it is finished"
        )
    path = places[0] / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(f"its format is {config['format']!r}, expected {FORMAT!r}")
        images, moments = config["images"], None
        if images["normalise"] == "measured":
            moments = Moments(tuple(images["mean"]), tuple(images["std"]))
        if images["normalise"] == "custom" and normalise is None:
            raise ValueError(
                "it was trained with a normalisation of its own: give it, normalise=function"
            )
        return Model(
            network or _network(config["network"]),
            _Files(
                places[0],
                {name: (each["file"], each["sha256"]) for name, each in config["weights"].items()},
            ),
            make(config["samples"], config["subnets"]),
            shape=images["shape"],
            dtype=np.dtype(images["dtype"]).name,
            fields=config["fields"],
            moments=moments,
            normalise=normalise,
            call=config["call"],
            batch_size=config["batch_size"],
            classes=config["classes"],
            about=config["about"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path} cannot be used: {reason}") from error


class _Files(Mapping[str, PyTree]):
    """Variables by their names, read from files when they are first used.

    Args:
      files: the name and the SHA-256 of each.
    """

    def __init__(self, folder: Path, files: Mapping[str, tuple[str, str]]):
        self._folder = folder
        self._files = dict(files)
        self._read: dict[str, PyTree] = {}

    def __getitem__(self, which: str) -> PyTree:
        if which not in self._read:
            name, digest = self._files[which]
            path = self._folder / Path(name).name  # within the folder, whatever the file says
            if path.is_file() and file_digest(path) != digest:
                raise ValueError(
                    f"{path} is damaged, or not the file that {CONFIG} describes: its SHA-256 "
                    "differs. A save over another model may have been interrupted; save it again"
                )
            self._read[which] = load(path)
        return self._read[which]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _network(described: Mapping[str, Any]) -> nn.Module:
    """Return the network of `dcjax.models` that was described."""
    home, _, name = described["class"].rpartition(".")
    kind = getattr(models, name, None)
    if home != "dcjax.models" or kind is None or described["settings"] is None:
        raise ValueError(
            f"its network is {described['class']}, which is not imported from here: give it, "
            f"network={name}(…)"
        )
    settings, conv = dict(described["settings"]), None
    if settings["conv_general_dilated"] == "native":
        conv = _compiled_convolution()
    dtype = jnp.dtype(settings["dtype"])
    return kind(**settings | {"dtype": dtype, "conv_general_dilated": conv})


def _compiled_convolution() -> Any:
    """Return the convolution that the network was trained with, None where it cannot be built."""
    if jax.default_backend() != "cpu":
        return None
    try:
        native.build()
    except native.NativeError:
        return None
    return native.conv_general_dilated
