"""The layout of large networks against Flax's own tracing of them."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

import dcjax
from experiments.benchmark import architectures
from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import in_turns, milliseconds
from experiments.markdown import table

SUBNETS = 4
IMAGES = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
TOKENS = jax.ShapeDtypeStruct((1, 1024), "int32")
HEADS = ("width", "heads")
NETWORKS = {
    "ResNet-152, 224²": (architectures.ResNet(), IMAGES, ("width",)),
    "ViT-L/16, 224²": (dcjax.grouped(architectures.ViT(), SUBNETS), IMAGES, HEADS),
    "causal LM, 24 layers, d = 1024": (
        dcjax.grouped(architectures.LanguageModel(), SUBNETS),
        TOKENS,
        HEADS,
    ),
}


def rows(platform: str) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    return {name: (name,) for name in NETWORKS if platform == "cpu"}


def measure(name: str, runs: int) -> dict[str, Any]:
    """Time the layout, and Flax's tracing of what the layout has to trace: both networks.

    Flax's tracing is `jax.eval_shape` of `init` and of `apply`. All arrays are abstract.
    """
    network, x, fields = NETWORKS[name]
    subnet = dcjax.decompose(network, SUBNETS, fields)
    found = in_turns(
        {
            "global": lambda: _trace([network], x),
            "both": lambda: _trace([network, subnet], x),
            "layout": lambda: dcjax.layout(network, SUBNETS, x, fields=fields),
        },
        runs,
    )
    return {key: timing._asdict() for key, timing in found.items()}


def _trace(networks: Sequence[nn.Module], x: Any) -> None:
    for network in networks:
        variables = jax.eval_shape(network.init, jax.random.key(0), x)
        jax.eval_shape(network.apply, variables, x)


def render(rows: Rows) -> str:
    """Return the table."""
    body = []
    for name, row in rows.items():
        times = [milliseconds(row[key]) for key in ("global", "both", "layout")]
        median = {key: row[key]["median"] for key in row}
        ratios = [median["layout"] / median[key] for key in ("both", "global")]
        body.append([name, *times, *(f"{ratio:.2f}" for ratio in ratios)])
    head = [f"K = {SUBNETS}; ms", "Flax: global network", "Flax: both", "layout"]
    return table([*head, "layout/both < 2", "layout/global"], body)
