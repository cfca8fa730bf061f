"""What grows with the number of sub-networks, and what must not."""

import re
from typing import Any

import jax

import dcjax
from dcjax import training
from experiments.benchmark import steps
from experiments.benchmark.timing import in_turns

_COLLECTIVES = (
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def scaling_row(depth: int, width: int, subnets: int, runs: int) -> dict[str, Any]:
    """K sub-networks on K devices: the step, memory a device, collectives, augmentation's share."""
    network = dcjax.models.ResNet(depth, width * subnets, 10)
    augmenting = steps.recipe(training.crop_and_flip)
    phase, state, _, seconds = steps.compiled(*steps.side_by_side(network, subnets))
    memory = phase.step.memory_analysis()
    found = in_turns(
        {
            "step": steps.runner(steps.side_by_side(network, subnets)),
            "augmented": steps.runner(steps.side_by_side(network, subnets, augmenting)),
        },
        runs,
    )
    return {name: timing._asdict() for name, timing in found.items()} | {
        "devices": len(phase.devices),
        "compile_seconds": seconds,
        "device_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // subnets,
        "collectives": len(re.findall(_COLLECTIVES, phase.step.as_text())),
    }
