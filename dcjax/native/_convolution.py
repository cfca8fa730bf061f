"""The compiled convolution, in the form that Flax takes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from dcjax._mesh import DEVICES
from dcjax.native._build import build, target

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated`, compiled for the processor, all three passes of it.

    With x (N, H, W, C), padded, a kernel K (kh, kw, C, O) and stride s it is
    y[n, p, q] = Σ_{i,j,c} x[n, s·p + i, s·q + j, c] K[i, j, c], computed directly, tile by tile,
    with the sums in registers; so are the gradients by the image and by the kernel. Sums are in the
    order of (i, j, c), so that a block-diagonal kernel's zeros change no bit of them, and are split
    by the shapes, not by the number of threads.

    Takes effect where JAX's default backend is the CPU, for float32 and two-dimensional NHWC
    convolutions without groups and dilation, in reverse mode; everything else is lax's own. Forward
    mode (`jax.jvp`, `jax.hessian`) of what it covers is not defined; take lax's for that. A batch
    that is cut over devices is computed where it is within `dcjax.training`'s phases, `jax.pmap`
    and `jax.shard_map(…, check_vma=False)`; XLA itself would gather it. For Flax:
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
    if not _is_covered(lhs, rhs, options):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    build()
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(lhs, rhs, _Window(lhs.shape[1:3], rhs.shape[:2], strides, pads))


def _is_covered(lhs: Array, rhs: Array, options: dict[str, Any]) -> bool:
    """Whether it is a plain two-dimensional convolution of channels-last images, on the CPU."""
    if lhs.ndim != 4 or not lhs.dtype == rhs.dtype == jnp.float32:
        return False
    if jax.default_backend() != "cpu" or jax.sharding.get_abstract_mesh().explicit_axes:
        return False
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    plain = lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
    dilated = any(
        step != 1 for name in ("lhs_dilation", "rhs_dilation") for step in (options.get(name) or ())
    )
    others = {name: value for name, value in options.items() if name not in _UNDERSTOOD}
    grouped = any(options.get(f"{axis}_group_count", 1) != 1 for axis in ("feature", "batch"))
    return numbers == plain and not dilated and not grouped and not any(others.values())


_UNDERSTOOD = (
    "dimension_numbers",
    "lhs_dilation",
    "rhs_dilation",
    "feature_group_count",
    "batch_group_count",
    "precision",  # it is single precision whatever is asked for
)


class _Window(NamedTuple):
    """How the kernel goes over the images: their height and width, its own, steps, zeros around."""

    image: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def _lax(x: Array, kernel: Array, window: _Window) -> Array:
    return lax.conv_general_dilated(
        x, kernel, window.strides, window.pads, dimension_numbers=_LAYOUT
    )


_CUT, _WHOLE = PartitionSpec(DEVICES), PartitionSpec()


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, window: _Window) -> Array:
    height, width = (
        max(0, (size + sum(pads) - taps) // step + 1)
        for size, taps, step, pads in zip(*window, strict=True)
    )

    def forward(x: Array, kernel: Array) -> Array:
        return _call("forward", x, kernel, (x.shape[0], height, width, kernel.shape[3]), window)

    def on_cpu(x: Array, kernel: Array) -> Array:
        return _on_shards(forward, (_CUT, _WHOLE), _CUT, x, kernel)

    # The default, which is never run, says what it is: to the layout's tracer, for one.
    default = functools.partial(_lax, window=window)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=default)


def _forward(x: Array, kernel: Array, window: _Window) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, window), (x, kernel)


def _backward(window: _Window, saved: tuple[Array, Array], y: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def by_image(y: Array, kernel: Array) -> Array:
        return _call("by_image", y, kernel, (y.shape[0], *x.shape[1:]), window)

    def by_kernel(x: Array, y: Array) -> Array:
        return _call("by_kernel", x, y, kernel.shape, window)

    return (
        _on_shards(by_image, (_CUT, _WHOLE), _CUT, y, kernel),
        _on_shards(by_kernel, (_CUT, _CUT), _WHOLE, x, y),
    )


_conv.defvjp(_forward, _backward)


def _on_shards(
    local: Callable[[Array, Array], Array],
    arguments: tuple[PartitionSpec, PartitionSpec],
    result: PartitionSpec,
    *args: Array,
) -> Array:
    """Each device's part where the batch is cut; what is whole is the sum over all parts.

    XLA, which does not see into the call, would gather the whole batch on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if DEVICES not in mesh.auto_axes or args[0].shape[0] % mesh.shape[DEVICES]:
        return local(*args)

    def shard(*args: Array) -> Array:
        part = local(*args)
        return part if result == _CUT else lax.psum(part, DEVICES)

    return jax.shard_map(
        shard, in_specs=arguments, out_specs=result, axis_names={DEVICES}, check_vma=False
    )(*args)


def _call(name: str, a: Array, b: Array, shape: tuple[int, ...], window: _Window) -> Array:
    """One pass, compiled."""
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(target(name), result, vmap_method="sequential")
    (down, right), ((top, _), (left, _)) = window.strides, window.pads
    steps = {"down": down, "right": right, "top": top, "left": left}
    return call(a, b, **{name: np.int64(value) for name, value in steps.items()})
