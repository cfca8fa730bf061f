"""What grows with the number of sub-networks, and what must not."""

import re
from typing import Any

import jax

from dcjax import training
from experiments.benchmark import steps

# What a compiled program calls communication between devices.
COLLECTIVES = re.compile(
    r"\b(?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast)(?:-start)?\("
)


def scaling_row(depth: int, width: int, subnets: int, runs: int) -> dict[str, Any]:
    """K sub-networks on K devices: the step, memory a device, collectives, augmentation's share."""
    network = steps.resnet(depth, width * subnets)
    augmenting = steps.recipe(training.crop_and_flip)
    made, variables = steps.side_by_side(network, subnets)
    phase, state, _, seconds = steps.compiled(made, variables)
    program = phase.step if phase.epoch is None else phase.epoch
    memory = program.memory_analysis()
    ways = {
        "step": (phase, variables),
        "augmented": steps.side_by_side(network, subnets, augmenting),
    }
    return steps.step_times(ways, runs) | {
        "devices": len(phase.devices),
        "compile_seconds": seconds,
        "device_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // subnets,
        "collectives": len(COLLECTIVES.findall(program.as_text())),
    }
