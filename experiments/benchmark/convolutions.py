"""The convolution's passes: forward, the gradient by the image, the gradient by the kernel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dcjax.models import conv_general_dilated
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
    """The passes over a batch: lax's, the kernel gradient of dcjax.models, and PyTorch's."""
    rng = np.random.default_rng(0)
    shape = (BATCH, conv.size, conv.size, conv.before)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(
        rng.normal(size=(conv.kernel, conv.kernel, conv.before, conv.after)), jnp.float32
    )

    def forward(x: Array, kernel: Array, by: Any = lax.conv_general_dilated) -> Array:
        return by(x, kernel, (conv.stride,) * 2, "SAME", dimension_numbers=LAYOUT)

    def by_image(x: Array, kernel: Array, y: Array) -> Array:
        return jax.vjp(lambda x: forward(x, kernel), x)[1](y)[0]

    def by_kernel(x: Array, kernel: Array, y: Array) -> Array:
        return jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](y)[0]

    def by_kernel_ours(x: Array, kernel: Array, y: Array) -> Array:
        return jax.vjp(lambda kernel: forward(x, kernel, conv_general_dilated), kernel)[1](y)[0]

    y = forward(x, kernel)

    def way(function: Callable[..., Array], *args: Array) -> Callable[[], Any]:
        function = jax.jit(function)
        return lambda: function(*args).block_until_ready()

    ways = {
        "forward": way(forward, x, kernel),
        "by_image": way(by_image, x, kernel, y),
        "by_kernel_lax": way(by_kernel, x, kernel, y),
        "by_kernel_dcjax": way(by_kernel_ours, x, kernel, y),
    }
    return {**ways, **_torch_passes(conv)}


def _torch_passes(conv: Convolution) -> Ways:
    if jax.default_backend() != "cpu":
        return {}
    try:
        from experiments.benchmark import torch_steps
    except ImportError:
        return {}
    return torch_steps.convolution_passes(BATCH, *conv)
