"""Batch normalisation and ReLU, forward and gradient: Flax's against the models'."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dcjax.models._norm import BatchNorm
from experiments.benchmark.steps import BATCH
from experiments.benchmark.timing import in_turns


def norm_row(size: int, channels: int, runs: int) -> dict[str, Any]:
    """Seconds of both on a batch of feature maps, as in training."""
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
