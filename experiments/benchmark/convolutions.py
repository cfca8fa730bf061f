"""The convolution's passes: forward, the gradient by the image, the gradient by the kernel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.benchmark.steps import convolution
from experiments.benchmark.timing import Ways, in_turns

BATCH = 128
LAYOUT = ("NHWC", "HWIO", "NHWC")


class Convolution(NamedTuple):
    """A square convolution of square images."""

    size: int
    before: int
    after: int
    kernel: int = 3
    stride: int = 1

    @property
    def flops(self) -> int:
        """Of one pass over a batch."""
        pixels = BATCH * (self.size // self.stride) ** 2
        return 2 * pixels * self.kernel**2 * self.before * self.after


def convolution_row(size: int, channels: int, runs: int) -> dict[str, Any]:
    """GF/s of the passes of a 3×3 convolution."""
    conv = Convolution(size, channels, channels)
    found = in_turns(passes(conv), runs)
    return {name: conv.flops / timing.median / 1e9 for name, timing in found.items()}


def passes(conv: Convolution) -> Ways:
    """The passes over a batch, by name and by whose they are: `forward native`, …

    `lax` are XLA's, `native` what is compiled here, `torch` PyTorch's.
    """
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in (
            (BATCH, conv.size, conv.size, conv.before),
            (conv.kernel, conv.kernel, conv.before, conv.after),
        )
    )
    ours: dict[str, Callable[..., Array]] = {"lax": lax.conv_general_dilated}
    if (native := convolution()) is not None:
        ours["native"] = native
    ways: dict[str, Callable[[], Any]] = {}
    for who, by in ours.items():
        ways |= {f"{name} {who}": way for name, way in _passes(by, conv, x, kernel).items()}
    return {**ways, **_torch_passes(conv)}


def _passes(by: Callable[..., Array], conv: Convolution, x: Array, kernel: Array) -> Ways:
    def forward(x: Array, kernel: Array) -> Array:
        return by(x, kernel, (conv.stride,) * 2, "SAME", dimension_numbers=LAYOUT)

    def by_image(x: Array, kernel: Array, y: Array) -> Array:
        return jax.vjp(lambda x: forward(x, kernel), x)[1](y)[0]

    def by_kernel(x: Array, kernel: Array, y: Array) -> Array:
        return jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](y)[0]

    def way(function: Callable[..., Array], *args: Array) -> Callable[[], Any]:
        function = jax.jit(function)
        return lambda: function(*args).block_until_ready()

    y = forward(x, kernel)
    return {
        "forward": way(forward, x, kernel),
        "by_image": way(by_image, x, kernel, y),
        "by_kernel": way(by_kernel, x, kernel, y),
    }


def _torch_passes(conv: Convolution) -> Ways:
    if jax.default_backend() != "cpu":
        return {}
    try:
        from experiments.benchmark import torch_steps
    except ImportError:
        return {}
    found = torch_steps.convolution_passes(BATCH, *conv)
    return {f"{name} torch": way for name, way in found.items()}
