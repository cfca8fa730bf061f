"""Time, memory and communication against the number of sub-networks."""

import re
from typing import Any

import jax

from dcjax import training
from experiments.benchmark import workloads
from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import milliseconds
from experiments.markdown import table

# The names of communication between devices in a compiled program.
COLLECTIVES = re.compile(
    r"\b(?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast)(?:-start)?\("
)


def rows(platform: str, full: bool) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    return {f"ResNet-8, width 8, K = {k}": (8, 8, k) for k in (1, 2, 4, 8)}


def measure(depth: int, width: int, subnets: int, runs: int) -> dict[str, Any]:
    """Measure K sub-networks on K devices: step, memory, collectives, augmentation."""
    network = workloads.resnet(depth, width * subnets)
    augmenting = workloads.recipe(training.crop_and_flip)
    made, variables = workloads.side_by_side(network, subnets)
    trainer, state, _, seconds = workloads.compiled(made, variables)
    program = trainer.step if trainer.epoch is None else trainer.epoch
    memory = program.memory_analysis()
    ways = {
        "step": (trainer, variables),
        "augmented": workloads.side_by_side(network, subnets, augmenting),
    }
    return workloads.step_times(ways, runs) | {
        "devices": len(trainer.devices),
        "compile_seconds": seconds,
        "device_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // subnets,
        "collectives": len(COLLECTIVES.findall(program.as_text())),
    }


def render(rows: Rows) -> str:
    """Return the table."""
    body = []
    for name, row in rows.items():
        step, augmented = row["step"]["median"], row["augmented"]["median"]
        times = [milliseconds(row["step"]), f"{step / row['devices'] * 1e3:.0f}"]
        times += [f"{augmented / step - 1:+.1%}"]
        memory = [f"{row['device_bytes'] / 2**20:.0f}", f"{row['state_bytes'] / 2**20:.2f}"]
        rest = [str(row["collectives"]), f"{row['compile_seconds']:.1f}"]
        body.append([name, str(row["devices"]), *times, *memory, *rest])
    head = ["sub-networks", "host devices", "step, ms", "step / devices", "augmentation adds"]
    head += ["MiB a device", "MiB of state a member", "collectives", "compilation, s"]
    return table(head, body)
