"""The parts of a training step: the convolutions' passes, each measured alone, and the rest."""

import collections
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import dcjax
from experiments.benchmark import workloads
from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.tables.convolutions import PASSES, Convolution, passes
from experiments.markdown import table


def rows(platform: str, full: bool) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    networks = ((8, 8), (20, 8), (8, 32), (8, 64)) if platform == "cpu" else ()
    return {f"ResNet-{depth}, width {width}": (depth, width) for depth, width in networks}


def measure(depth: int, width: int, runs: int) -> dict[str, Any]:
    """Time a step of one ResNet, and all its convolutions pass by pass.

    Returns:
      By maker (`lax`, `native`, `torch`), the seconds of the step and of the three passes; for
      `torch_compiled`, in which convolutions cannot be told apart, of the step.
    """
    plain, one = dcjax.models.ResNet(depth, width, 10), jax.devices()[:1]
    convs = convolutions_of(plain)
    apart = {f"{conv} {name}": way for conv in convs for name, way in passes(conv).items()}
    made = {"lax": workloads.data_parallel(plain, one)}
    if workloads.convolution() is not None:
        made["native"] = workloads.data_parallel(workloads.resnet(depth, width), one)
    others = {}
    if (torch := workloads.torch_steps()) is not None:
        theirs = torch.ways(workloads.BATCH, depth, width, 1)
        others = {"torch": theirs["torch_loop"], "torch_compiled": theirs["torch_compiled"]}
    found = {n: t["median"] for n, t in workloads.step_times(made, runs, others | apart).items()}
    makers = [maker for maker in ("lax", "native", "torch") if maker in found]
    row = {m: [found[m], *(_in_all(convs, found, f"{n} {m}") for n in PASSES)] for m in makers}
    if others:
        row["torch_compiled"] = [found["torch_compiled"]]
    return row


def _in_all(convs: Mapping[Convolution, int], found: Mapping[str, float], name: str) -> float:
    """Return the seconds of a pass of all convolutions."""
    return sum(
        count * found[f"{conv} {name}"]
        for conv, count in convs.items()
        # A training step does not compute the gradient by the input images.
        if not (name.startswith("by_image") and conv.before == 3)
    )


def convolutions_of(network: nn.Module) -> collections.Counter[Convolution]:
    """Count the convolutions of one forward pass of 32×32 images."""
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


def render(rows: Rows) -> str:
    """Return the table."""
    makers = {"lax": "XLA's convolutions", "native": "compiled ones", "torch": "PyTorch"}
    makers["torch_compiled"] = "PyTorch, `torch.compile`"
    body = []
    for name, row in rows.items():
        for maker, title in makers.items():
            if maker in row:
                step, *parts = row[maker]
                parts = [*parts, step - sum(parts)] if parts else []
                times = [f"{1e3 * s:.0f}" for s in (step, *parts)]
                times += ["–"] * (5 - len(times))
                ratio = f"{step / row['torch'][0]:.2f}" if "torch" in row else "–"
                body.append([f"{name}, {title}", *times, ratio])
    head = ["one network", "step, ms", "convolutions forward", "by the image", "by the kernel"]
    return table([*head, "rest", "of PyTorch's step"], body)
