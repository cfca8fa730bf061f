"""compose and extract against a plain copy of the same bytes, and the memory they take."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import dcjax
from dcjax import Layout, LeafLayout, Order, Run, Stacked
from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import in_turns, milliseconds
from experiments.markdown import table


def dense_layout(subnets: int, width: int, layers: int) -> Layout:
    """Return the layout of square kernels of `width` global units."""
    order = Order((Run(width // subnets),))
    return Layout(
        subnets, tuple(((f"kernel{i}",), LeafLayout((order, order))) for i in range(layers))
    )


def paper_layout() -> Layout:
    """Return the layout of the paper's network: ResNet-32, width 64, K = 4."""
    network = dcjax.models.ResNet(32, 64, 10)
    return dcjax.layout(network, 4, jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"))


LAYOUTS = {
    "ResNet-32, width 64 (30 MB)": paper_layout,
    "4 dense layers of 8192 (1 GB)": lambda: dense_layout(4, 8192, 4),
}


def ones(layout: Layout) -> Stacked:
    """Return sub-networks of that layout, all ones."""
    tree: dict[str, Any] = {}
    for path, leaf in layout.leaves:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jnp.ones((layout.subnets, *leaf.narrow_shape))
    return Stacked(tree, layout)


def rows(platform: str, full: bool) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    return {name: (name,) for name in LAYOUTS}


def measure(name: str, runs: int) -> dict[str, Any]:
    """Time a copy of the global tree, compose and extract; measure compose's peak memory."""
    layout = LAYOUTS[name]()
    stacked = ones(layout)
    whole = dcjax.compose(stacked)
    plain = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    found = in_turns(
        {
            "copy": lambda: jax.block_until_ready(plain(whole)),
            "compose": lambda: jax.block_until_ready(dcjax.compose(stacked)),
            "extract": lambda: jax.block_until_ready(dcjax.extract(whole, like=layout)),
            "copy_of_stack": lambda: jax.block_until_ready(plain(stacked)),
        },
        runs,
    )
    row: dict[str, Any] = {key: timing._asdict() for key, timing in found.items()}
    row["bytes"] = sum(leaf.nbytes for leaf in jax.tree.leaves(whole))
    row["peak_bytes"] = _peak_of_compose(name, stacked)
    return row


def _peak_of_compose(name: str, stacked: Stacked) -> int:
    """Return the bytes that compose takes at its peak, with its result."""
    if jax.default_backend() != "cpu":  # the device's memory is not the process's
        memory: Any = jax.jit(dcjax.compose).lower(stacked).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes
    command = [sys.executable, "-m", "experiments.benchmark.tables.copies", name]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(printed.split()[-1])


def _peak() -> int:
    """Return the process's highest resident memory; getrusage's includes the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


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
    head += ["copy of the stack", "extract", "copy/extract ≥ 0.5", "peak memory / global tree"]
    return table(head, body)


if __name__ == "__main__":
    # In a new process, because a peak never falls. A small network first, for JAX's own memory.
    jax.block_until_ready(dcjax.compose(ones(dense_layout(4, 64, 1))))
    subnets_tree = jax.block_until_ready(ones(LAYOUTS[sys.argv[1]]()))
    before = _peak()
    jax.block_until_ready(dcjax.compose(subnets_tree))
    print(_peak() - before)
