"""Batch normalisation and ReLU, forward and gradient: Flax's against the models'."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dcjax.models import BatchNorm
from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import in_turns
from experiments.benchmark.workloads import BATCH
from experiments.markdown import table


def rows(platform: str, full: bool) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    sizes = ((32, 8), (32, 16), (16, 32), (8, 64), (32, 64))
    return {f"{size}×{size}×{channels}": (size, channels) for size, channels in sizes}


def measure(size: int, channels: int, runs: int) -> dict[str, Any]:
    """Time both on a batch of feature maps, as in training."""
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    ours = BatchNorm(momentum=0.9, epsilon=1e-5)
    x = jax.random.normal(jax.random.key(0), (BATCH, size, size, channels))
    variables = theirs.init(jax.random.key(1), x)

    def way(norm: Callable[..., Any]) -> Callable[[], Any]:
        def forward(variables: Any, x: Array) -> tuple[Array, Any]:
            y, renewed = norm(variables, x)
            return nn.relu(y), renewed

        def both(variables: Any, x: Array) -> Any:
            y, back, renewed = jax.vjp(forward, variables, x, has_aux=True)
            return back(jnp.ones_like(y)), renewed

        compiled = jax.jit(both)
        return lambda: jax.block_until_ready(compiled(variables, x))

    ways = {
        "flax": way(lambda v, x: theirs.apply(v, x, mutable=["batch_stats"])),
        "dcjax": way(lambda v, x: ours.apply(v, x, True, mutable=["batch_stats"])),
    }
    return {name: timing._asdict() for name, timing in in_turns(ways, runs).items()}


def render(rows: Rows) -> str:
    """Return the table."""
    body = []
    for name, row in rows.items():
        flax, ours = row["flax"]["median"], row["dcjax"]["median"]
        body.append([name, f"{1e3 * flax:.2f}", f"{1e3 * ours:.2f}", f"{ours / flax:.2f}"])
    head = ["batch norm and ReLU, forward and gradient, 128 images; ms", "Flax's", "dcjax.models'"]
    return table([*head, "of Flax's"], body)
