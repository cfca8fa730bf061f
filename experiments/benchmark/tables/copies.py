"""compose and extract against a plain copy of the same bytes, and the memory compose takes."""

from typing import Any

import jax
import jax.numpy as jnp

import dcjax
from dcjax import Layout, LeafLayout, Order, Run, Stacked
from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import in_turns, milliseconds
from experiments.markdown import table


def paper() -> Stacked:
    """Return sub-networks of the paper's network."""
    network = dcjax.models.ResNet(32, 64, 10)
    return dcjax.init(network, 4, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def dense() -> Stacked:
    """Return sub-networks of four dense layers, with kernels of 8192×8192."""
    leaf = LeafLayout((Order((Run(2048),)),) * 2)
    tree = {f"kernel{i}": jnp.ones((4, 2048, 2048)) for i in range(4)}
    return Stacked(tree, Layout(4, tuple(((name,), leaf) for name in tree)))


NETWORKS = {"ResNet-32, width 64 (30 MB)": paper, "4 dense layers of 8192 (1 GB)": dense}


def rows(platform: str) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    return {name: (name,) for name in NETWORKS}


def measure(name: str, runs: int) -> dict[str, Any]:
    """Time a copy of the global tree, compose and extract; ask XLA for compose's memory."""
    stacked = NETWORKS[name]()
    whole = dcjax.compose(stacked)
    plain = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    found = in_turns(
        {
            "copy": lambda: jax.block_until_ready(plain(whole)),
            "compose": lambda: jax.block_until_ready(dcjax.compose(stacked)),
            "extract": lambda: jax.block_until_ready(dcjax.extract(whole, like=stacked.layout)),
            "copy_of_stack": lambda: jax.block_until_ready(plain(stacked)),
        },
        runs,
    )
    memory: Any = jax.jit(dcjax.compose).lower(stacked).compile().memory_analysis()
    return {key: timing._asdict() for key, timing in found.items()} | {
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(whole)),
        "peak_bytes": memory.temp_size_in_bytes + memory.output_size_in_bytes,
    }


def render(rows: Rows) -> str:
    """Return the table."""
    body = []
    for name, row in rows.items():
        cells = [name]
        for plain, ours in (("copy", "compose"), ("copy_of_stack", "extract")):
            ratio = row[plain]["median"] / row[ours]["median"]
            cells += [milliseconds(row[plain]), milliseconds(row[ours]), f"{ratio:.2f}"]
        body.append([*cells, f"{row['peak_bytes'] / row['bytes']:.2f}"])
    head = ["network", "copy of the global tree, ms", "compose", "copy/compose ≥ 0.5"]
    head += ["copy of the stack", "extract", "copy/extract ≥ 0.5", "memory / global tree"]
    return table(head, body)
