"""The machine's limits, against which the other figures stand."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.timing import in_turns

SIDE = 4096
COPIED = 2**28


def machine_row(runs: int) -> dict[str, Any]:
    """GF/s of a large float32 matrix product, GB/s written by a copy of 256 MiB."""
    square = jnp.ones((SIDE, SIDE))
    vector = jnp.ones(COPIED // 4)
    product = jax.jit(lambda a: a @ a)
    copy = jax.jit(jnp.copy)
    found = in_turns(
        {
            "product": lambda: product(square).block_until_ready(),
            "copy": lambda: copy(vector).block_until_ready(),
        },
        runs,
    )
    return {
        "gflops": 2 * SIDE**3 / found["product"].median / 1e9,
        "gbytes": COPIED / found["copy"].median / 1e9,
    }
