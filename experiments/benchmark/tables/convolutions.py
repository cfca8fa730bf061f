"""The convolution's passes: forward, the gradient by the image, the gradient by the kernel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments.benchmark.tables import Cases, Rows
from experiments.benchmark.timing import Ways, in_turns
from experiments.benchmark.workloads import BATCH, convolution, torch_steps
from experiments.markdown import table

PASSES = {"forward": "forward", "by_image": "by the image", "by_kernel": "by the kernel"}
LAYOUT = ("NHWC", "HWIO", "NHWC")


def rows(platform: str) -> Cases:
    """Return the arguments of `measure` for each row, by the row's name."""
    sizes = (32, 8), (16, 16), (8, 32), (32, 16), (16, 32), (8, 64), (32, 32), (16, 128), (8, 256)
    return {f"{s}×{s}×{c}": (s, c) for s, c in sizes if platform == "cpu"}


def measure(size: int, channels: int, runs: int) -> dict[str, Any]:
    """Measure GF/s of the passes of a 3×3 convolution of square images.

    Returns:
      Figures by pass and maker, such as `forward native`: `lax` are XLA's passes, `native` the
      compiled ones, `torch` PyTorch's.
    """
    makers = {"lax": passes(lax.conv_general_dilated, size, channels)}
    if (compiled := convolution()) is not None:
        makers["native"] = passes(compiled, size, channels)
    if (torch := torch_steps()) is not None:
        makers["torch"] = torch.convolution_passes(BATCH, size, channels)
    ways = {f"{n} {maker}": way for maker, its in makers.items() for n, way in its.items()}
    flops = 2 * BATCH * size**2 * 3**2 * channels**2
    return {name: flops / timing.median / 1e9 for name, timing in in_turns(ways, runs).items()}


def passes(convolve: Callable[..., Array], size: int, channels: int) -> Ways:
    """Return the passes of a convolution over a batch, by their names."""
    x = jax.random.normal(jax.random.key(0), (BATCH, size, size, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels))

    def forward(x: Array, kernel: Array) -> Array:
        return convolve(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)

    def by_image(x: Array, kernel: Array, y: Array) -> Array:
        return jax.vjp(lambda x: forward(x, kernel), x)[1](y)[0]

    def by_kernel(x: Array, kernel: Array, y: Array) -> Array:
        return jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](y)[0]

    def way(function: Callable[..., Array], *args: Array) -> Callable[[], Any]:
        function = jax.jit(function)
        return lambda: function(*args).block_until_ready()

    y = jnp.ones_like(x)
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
