"""Training steps: K sub-networks side by side, one alone, the global network; and PyTorch's."""

from typing import Any

import jax

import dcjax
from experiments.benchmark import workloads
from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import milliseconds
from experiments.markdown import table
from experiments.method import factory
from experiments.settings.flags import Network

COLUMNS = {
    "side_by_side": "side by side, ms",
    "single": "one alone",
    "global": "global",
    "torch_loop": "PyTorch loop",
    "torch_vmap": "PyTorch vmap",
    "torch_global": "PyTorch global",
}
RATIOS = {
    "single": "(a) ≤ 1",
    "torch": "(b) ≤ 1",
    "ideal": "(c) ≤ 1.3",
    "torch_global": "global ≤ 1",
}


def rows(platform: str) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    if platform == "cpu":
        sizes = [(d, w, k) for d in (8, 20, 32) for w in (8, 16) for k in (1, 2, 4, 8)]
        said = ""
    else:
        sizes = [(8, 32, 4), (8, 8, 4), (20, 16, 4), (32, 16, 4)]
        said = f", {factory.precision(Network())}"
    return {f"ResNet-{d}, width {w}, K = {k}{said}": (d, w, k) for d, w, k in sizes}


def measure(depth: int, width: int, subnets: int, runs: int) -> dict[str, Any]:
    """Time the steps of ResNet sub-networks, on batches of 128 images without augmentation.

    `single` is a sub-network's step by plain `jit` on one device, which uses all cores; `global`
    the data-parallel step of the network that is K times as wide, on as many devices.
    """
    network = workloads.resnet(depth, width * subnets)
    subnet = dcjax.decompose(network, subnets)
    made = {
        "side_by_side": workloads.side_by_side(network, subnets),
        "single": workloads.data_parallel(subnet, jax.devices()[:1]),
        "global": workloads.data_parallel(network, jax.devices()[:subnets]),
    }
    torch = workloads.torch_steps()
    others = {} if torch is None else torch.ways(workloads.BATCH, depth, width, subnets)
    return workloads.step_times(made, others, runs) | {"subnets": subnets}


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """Return ratios of the step: to K single steps, the faster PyTorch form, and the ideal 1/K."""
    median = {name: row[name]["median"] for name in COLUMNS if name in row}
    side, subnets = median["side_by_side"], row["subnets"]
    found = {
        "single": side / (subnets * median["single"]),
        "ideal": side / (median["global"] / subnets),
    }
    if "torch_loop" in median:
        found["torch"] = side / min(median["torch_loop"], median["torch_vmap"])
        found["torch_global"] = median["global"] / median["torch_global"]
    return found


def render(rows: Rows) -> str:
    """Return the table."""
    body = []
    for name, row in rows.items():
        found = ratios(row)
        times = [milliseconds(row[key]) if key in row else "–" for key in COLUMNS]
        quotients = [f"{found[key]:.2f}" if key in found else "–" for key in RATIOS]
        body.append([name, *times, *quotients])
    return table(["sub-networks", *COLUMNS.values(), *RATIOS.values()], body)
