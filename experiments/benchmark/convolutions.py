"""The convolution's three passes, and the kernel gradient against lax's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dcjax.models import conv_general_dilated
from experiments.benchmark.timing import in_turns

LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution_row(size: int, channels: int, runs: int) -> dict[str, Any]:
    """GF/s of a 3×3 convolution of 128 images: forward, by the image, by the kernel twice."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(128, size, size, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels, channels)), jnp.float32)

    def forward(x: Array, kernel: Array, by: Any = lax.conv_general_dilated) -> Array:
        return by(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)

    @jax.jit
    def by_image(x: Array, kernel: Array, y: Array) -> Array:
        return jax.vjp(lambda x: forward(x, kernel), x)[1](y)[0]

    @jax.jit
    def by_kernel(x: Array, kernel: Array, y: Array) -> Array:
        return jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](y)[0]

    @jax.jit
    def by_kernel_ours(x: Array, kernel: Array, y: Array) -> Array:
        return jax.vjp(lambda kernel: forward(x, kernel, conv_general_dilated), kernel)[1](y)[0]

    y, plain = x, jax.jit(forward)
    found = in_turns(
        {
            "forward": lambda: plain(x, kernel).block_until_ready(),
            "by_image": lambda: by_image(x, kernel, y).block_until_ready(),
            "by_kernel_lax": lambda: by_kernel(x, kernel, y).block_until_ready(),
            "by_kernel_dcjax": lambda: by_kernel_ours(x, kernel, y).block_until_ready(),
        },
        runs,
    )
    flops = 2 * 128 * size * size * 9 * channels * channels
    return {name: flops / timing.median / 1e9 for name, timing in found.items()}
