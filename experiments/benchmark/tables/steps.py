"""Training steps: K sub-networks side by side, one alone, the global network; and PyTorch's."""

import re
from typing import Any

import jax

import dcjax
from experiments.benchmark import workloads
from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import milliseconds
from experiments.markdown import table
from experiments.method import factory
from experiments.settings.flags import Network


def rows(platform: str, full: bool) -> Cases:
    """Return the arguments of `measure` for each row; with `full` all widths, depths and K."""
    sizes = [(8, 8, 1), (8, 8, 2), (8, 8, 4), (8, 8, 8), (8, 16, 4), (20, 8, 4), (32, 8, 4)]
    dtype = factory.precision(Network())
    said = ""
    if platform != "cpu":
        sizes, said = [(8, 32, 4), (8, 8, 4), (20, 16, 4), (32, 16, 4)], f", {dtype}"
    if full:
        sizes = [(d, w, k) for d in (8, 20, 32) for w in (8, 16) for k in (1, 2, 4, 8)]
    return {
        f"ResNet-{depth}, width {width}, K = {k}{said}": (depth, width, k, dtype, full)
        for depth, width, k in sizes
    }


def measure(
    depth: int, width: int, subnets: int, dtype: str, full: bool, runs: int
) -> dict[str, Any]:
    """Time the steps of ResNet sub-networks, on batches of 128 images without augmentation.

    `single` is a sub-network's step by plain `jit` on one device, which uses all cores; `global`
    the data-parallel step of the network that is K times as wide, on as many devices.
    """
    network = workloads.resnet(depth, width * subnets, dtype=dtype)
    subnet = dcjax.decompose(network, subnets)
    made = {
        "side_by_side": workloads.side_by_side(network, subnets),
        "single": workloads.data_parallel(subnet, jax.devices()[:1]),
        "global": workloads.data_parallel(network, jax.devices()[:subnets]),
    }
    torch = workloads.torch_steps()
    others = {} if torch is None else torch.ways(workloads.BATCH, depth, width, subnets)
    others.pop("torch_compiled", None)  # takes minutes to compile; the profile shows one
    return workloads.step_times(made, runs, others) | {"full": full}


def ratios(row: dict[str, Any], subnets: int) -> dict[str, float]:
    """Return ratios of the step: to K single steps, the faster PyTorch form, and the ideal 1/K."""
    median = {name: timing["median"] for name, timing in row.items() if name in COLUMNS}
    side = median["side_by_side"]
    found = {
        "single": side / (subnets * median["single"]),
        "ideal": side / (median["global"] / subnets),
    }
    if "torch_loop" in median:
        found["torch"] = side / min(median["torch_loop"], median["torch_vmap"])
        found["torch_global"] = median["global"] / median["torch_global"]
    return found


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


def render(rows: Rows) -> str:
    """Return the table, in order of depth, width and K."""

    def numbers(name: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", name)]

    body = []
    for name in sorted(rows, key=numbers):
        row = rows[name]
        found = ratios(row, numbers(name)[2])
        times = [milliseconds(row[key]) if key in row else "–" for key in COLUMNS]
        body.append(
            [name, *times, *(f"{found[key]:.2f}" if key in found else "–" for key in RATIOS)]
        )
    return table(["sub-networks", *COLUMNS.values(), *RATIOS.values()], body)
