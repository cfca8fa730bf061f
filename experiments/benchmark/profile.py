"""What a training step is spent on: the convolutions' passes, each by itself, and the rest."""

import collections
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import dcjax
from experiments.benchmark import steps
from experiments.benchmark.convolutions import Convolution, passes

PASSES = {"forward": "forward", "by_image": "by_image", "by_kernel": "by_kernel_dcjax"}


def profile_row(depth: int, width: int, runs: int) -> dict[str, Any]:
    """Seconds of a step of one ResNet, and of all its convolutions pass by pass; PyTorch's too."""
    network = dcjax.models.ResNet(depth, width, 10)
    convs = convolutions_of(network)
    apart = {f"{conv} {name}": way for conv in convs for name, way in passes(conv).items()}
    torch_steps = steps.torch_ways(depth, width, 1)
    theirs = {"torch_step": torch_steps["torch_loop"]} if torch_steps else {}
    made = {"step": steps.data_parallel(network, jax.devices()[:1])}
    found = steps.step_times(made, runs, theirs | apart)
    seconds = {name: found[name]["median"] for name in ("step", *theirs)}
    for conv, count in convs.items():
        for name, ours in PASSES.items():
            if name == "by_image" and conv.before == 3:
                continue  # nothing asks for the gradient by the input images
            for key, of in ((name, ours), *[(f"torch_{name}",) * 2 for _ in theirs]):
                spent = count * found[f"{conv} {of}"]["median"]
                seconds[key] = seconds.get(key, 0.0) + spent
    return seconds


def convolutions_of(network: nn.Module) -> collections.Counter[Convolution]:
    """The convolutions that one forward pass of 32×32 images goes through, and how often."""
    seen: collections.Counter[Convolution] = collections.Counter()

    def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        conv = context.module
        if isinstance(conv, nn.Conv) and context.method_name == "__call__":
            _, size, _, before = args[0].shape
            kernel, stride = np.ravel(conv.kernel_size)[0], np.ravel(conv.strides or 1)[0]
            seen[Convolution(size, before, conv.features, int(kernel), int(stride))] += 1
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return seen
