"""What a training step is spent on: the convolutions' passes, each by itself, and the rest."""

import collections
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import dcjax
from experiments.benchmark import steps
from experiments.benchmark.convolutions import Convolution, passes

PASSES = ("forward", "by_image", "by_kernel")


def profile_row(depth: int, width: int, runs: int) -> dict[str, Any]:
    """Seconds of a step of one ResNet, and of all its convolutions pass by pass.

    With the compiled convolutions, with JAX's own, and PyTorch's; and PyTorch's step as a whole by
    `torch.compile`. By whose, a list of the step and the three passes.
    """
    plain, one = dcjax.models.ResNet(depth, width, 10), jax.devices()[:1]
    convs = convolutions_of(plain)
    apart = {f"{conv} {name}": way for conv in convs for name, way in passes(conv).items()}
    made = {"lax": steps.data_parallel(plain, one)}
    if steps.convolution() is not None:
        made["native"] = steps.data_parallel(steps.resnet(depth, width), one)
    theirs = steps.torch_ways(depth, width, 1)
    others = {}
    if theirs:
        others = {"torch": theirs["torch_loop"], "torch_compiled": theirs["torch_compiled"]}
    found = {n: t["median"] for n, t in steps.step_times(made, runs, others | apart).items()}
    whose = [who for who in ("lax", "native", "torch") if who in found]
    row = {
        who: [found[who], *(_in_all(convs, found, f"{n} {who}") for n in PASSES)] for who in whose
    }
    if others:
        row["torch_compiled"] = [found["torch_compiled"]]  # in it convolutions have no time apart
    return row


def _in_all(convs: Mapping[Convolution, int], found: Mapping[str, float], name: str) -> float:
    """Seconds of a pass of all convolutions."""
    return sum(
        count * found[f"{conv} {name}"]
        for conv, count in convs.items()
        # Nothing asks for the gradient by the input images.
        if not (name.startswith("by_image") and conv.before == 3)
    )


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
