"""The machine's limits, against which the other figures stand."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import in_turns
from experiments.markdown import table

SIDE = 4096
COPIED = 2**28


def rows(platform: str, full: bool) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    return {"this machine": ()}


def measure(runs: int) -> dict[str, Any]:
    """Measure GF/s of a float32 matrix product, and GB/s written by a copy of 256 MiB."""
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


def render(rows: Rows) -> str:
    """Return the table."""
    body = [[name, f"{row['gflops']:.0f}", f"{row['gbytes']:.1f}"] for name, row in rows.items()]
    return table(["", "matrix product 4096³, GF/s", "copy of 256 MiB, GB/s written"], body)
