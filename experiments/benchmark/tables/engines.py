"""Ways to run several sub-networks on one device: unrolled, vmapped or in a loop."""

from typing import Any, get_args

import jax

from dcjax import training
from experiments.benchmark import workloads
from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import milliseconds
from experiments.markdown import table

ENGINES = {
    f"{form}, {'epoch' if whole else 'step'}": training.Engine(form, whole)
    for form in get_args(training.Engine.__annotations__["members"])
    for whole in (False, True)
}


def rows(platform: str, full: bool) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    sizes, dtypes = [(8, 8, 4)], ["float32"]
    if platform != "cpu":
        sizes, dtypes = [(8, 32, 4), (8, 8, 4), (20, 16, 4)], ["bfloat16", "float32"]
    return {
        f"ResNet-{depth}, width {width}, K = {k}, {dtype}": (depth, width, k, dtype)
        for depth, width, k in sizes
        for dtype in dtypes
    }


def measure(depth: int, width: int, subnets: int, dtype: str, runs: int) -> dict[str, Any]:
    """Time the step of K sub-networks on one device with every engine.

    On an accelerator only with whole epochs: compiling takes most of a row's time there.
    """
    network = workloads.resnet(depth, width * subnets, dtype=dtype)
    one = jax.devices()[:1]
    made = {
        name: workloads.side_by_side(network, subnets, engine=engine, devices=one)
        for name, engine in ENGINES.items()
        if one[0].platform == "cpu" or engine.whole_epochs
    }
    return workloads.step_times(made, runs)


def render(rows: Rows) -> str:
    """Return the table, a column for each engine."""
    first = next(iter(rows.values()))
    columns = [key for key, value in first.items() if isinstance(value, dict) and key != "on"]
    body = [[name, *(milliseconds(row[key]) for key in columns)] for name, row in rows.items()]
    return table(["sub-networks on one device, ms a step", *columns], body)
