"""The convolution's passes: forward, the gradient by the image, the gradient by the kernel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import Ways, in_turns
from experiments.benchmark.workloads import BATCH, convolution, torch_steps
from experiments.markdown import table

PASSES = {"forward": "forward", "by_image": "by the image", "by_kernel": "by the kernel"}
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
        """Floating-point operations of one pass over a batch."""
        pixels = BATCH * (self.size // self.stride) ** 2
        return 2 * pixels * self.kernel**2 * self.before * self.after


def rows(platform: str, full: bool) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    sizes = (32, 8), (16, 16), (8, 32), (32, 16), (16, 32), (8, 64), (32, 32), (16, 128), (8, 256)
    return {f"{s}×{s}×{c}": (s, c) for s, c in sizes if platform == "cpu"}


def measure(size: int, channels: int, runs: int) -> dict[str, Any]:
    """Measure GF/s of the passes of a 3×3 convolution."""
    conv = Convolution(size, channels, channels)
    found = in_turns(passes(conv), runs)
    return {name: conv.flops / timing.median / 1e9 for name, timing in found.items()}


def passes(conv: Convolution) -> Ways:
    """Return the passes over a batch by their names and makers: `forward native`, …

    `lax` are XLA's, `native` the compiled ones, `torch` PyTorch's.
    """
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in (
            (BATCH, conv.size, conv.size, conv.before),
            (conv.kernel, conv.kernel, conv.before, conv.after),
        )
    )
    makers = {"lax": lax.conv_general_dilated, "native": convolution()}
    ways: dict[str, Callable[[], Any]] = {}
    for maker, convolve in makers.items():
        if convolve is not None:
            ways |= {f"{n} {maker}": way for n, way in _passes(convolve, conv, x, kernel).items()}
    if (torch := torch_steps()) is not None:
        ways |= {f"{n} torch": way for n, way in torch.convolution_passes(BATCH, *conv).items()}
    return ways


def _passes(convolve: Callable[..., Array], conv: Convolution, x: Array, kernel: Array) -> Ways:
    def forward(x: Array, kernel: Array) -> Array:
        return convolve(x, kernel, (conv.stride,) * 2, "SAME", dimension_numbers=LAYOUT)

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


def render(rows: Rows) -> str:
    """Return the table."""
    columns = [f"{name} {maker}" for name in PASSES for maker in ("lax", "native", "torch")]
    body = [
        [name, *(f"{row[key]:.0f}" if key in row else "–" for key in columns)]
        for name, row in rows.items()
    ]
    head = ["3×3, 128 images; GF/s"]
    for title in PASSES.values():
        head += [f"{title}: XLA's", "compiled", "PyTorch's"]
    return table(head, body)
