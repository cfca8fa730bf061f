"""The compiled convolution, in the form that Flax takes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dcjax.models._conv import Passes, Window, convolution
from dcjax.models._conv import conv_general_dilated as in_jax
from dcjax.native._build import build, target


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated`, compiled for the processor, all three passes of it.

    With x (N, H, W, C), padded, a kernel (kh, kw, C, O) and stride s it is
    y[n, p, q] = Σ_{i,j,c} x[n, s·p + i, s·q + j, c] K[i, j, c], computed directly, tile by tile,
    with the sums in registers; so are the gradients by the image and by the kernel. Sums are in the
    order of (i, j, c), so that a block-diagonal kernel's zeros change no bit of them, and are split
    by the shapes, not by the number of threads.

    Takes effect where JAX's default backend is the CPU, for float32 and two-dimensional NHWC
    convolutions without groups and dilation; everything else is
    `dcjax.models.conv_general_dilated`'s, which says what holds for derivatives. A batch that is
    cut over devices is computed where it is within `dcjax.training`'s phases, `jax.pmap` and
    `jax.shard_map(…, check_vma=False)`; XLA itself would gather it. For Flax:
    `nn.Conv(…, conv_general_dilated=dcjax.native.conv_general_dilated)`.

    Args:
      lhs: images (N, H, W, C).
      rhs: kernels (kh, kw, C, O).
      window_strides: as lax's.
      padding: as lax's.
      **options: lax's other arguments, by name.

    Returns:
      What lax's returns.

    Raises:
      NativeError: at its first use, if it cannot be compiled here (`dcjax.native.build`).

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[
    ...     0, 1, 1, 0
    ... ]
    Array(18., dtype=float32)
    """
    singles = lhs.dtype == rhs.dtype == jnp.float32
    if not singles or jax.default_backend() != "cpu":
        return in_jax(lhs, rhs, window_strides, padding, **options)
    build()
    return _compiled(lhs, rhs, window_strides, padding, **options)


def _forward(x: Array, kernel: Array, window: Window) -> Array:
    height, width = (
        max(0, (size + sum(pads) - taps) // step + 1)
        for size, taps, step, pads in zip(*window[:4], strict=True)
    )
    return _call("forward", x, kernel, (x.shape[0], height, width, kernel.shape[3]), window)


def _by_image(y: Array, kernel: Array, window: Window) -> Array:
    return _call("by_image", y, kernel, (y.shape[0], *window.image, kernel.shape[2]), window)


def _by_kernel(x: Array, y: Array, window: Window) -> Array:
    return _call("by_kernel", x, y, (*window.size, x.shape[3], y.shape[3]), window)


def _call(name: str, a: Array, b: Array, shape: tuple[int, ...], window: Window) -> Array:
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(target(name), result, vmap_method="sequential")
    (down, right), ((top, _), (left, _)) = window.strides, window.pads
    steps = {"down": down, "right": right, "top": top, "left": left}
    return call(a, b, **{name: np.int64(value) for name, value in steps.items()})


_compiled = functools.partial(convolution, Passes(_forward, _by_image, _by_kernel))
