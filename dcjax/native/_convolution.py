"""The compiled convolution, with the signature that Flax's hook asks for."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from dcjax.native._build import build, target

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """Compute `jax.lax.conv_general_dilated` and its gradients with code compiled for this CPU.

    With x (N, H, W, C), padded, a kernel K (kh, kw, C, O) and stride s,
    y[n, p, q] = Σ_{i,j,c} x[n, s·p + i, s·q + j, c] K[i, j, c]. Tiles of y are summed in registers;
    so are tiles of the gradients. Sums are in the order of (i, j, c), so the zeros of a
    block-diagonal kernel do not change a bit. How sums are split depends on the shapes, not on the
    number of threads.

    The compiled code serves float32 and two-dimensional NHWC convolutions without groups and
    dilation where JAX's default backend is the CPU; lax computes all others. The compiled code has
    no forward-mode derivative (`jax.jvp`, `jax.hessian`): take lax's convolution for that. The
    batch is cut over the automatic axes of the mesh in context (`jax.set_mesh`), which
    `dcjax.training` sets; without such a mesh XLA gathers a batch that is cut over devices.

    For Flax: `nn.Conv(…, conv_general_dilated=dcjax.native.conv_general_dilated)`.

    Args:
      lhs: images (N, H, W, C).
      rhs: kernels (kh, kw, C, O).
      window_strides: two integers ≥ 1.
      padding: as lax's.
      **options: lax's other arguments, by name.

    Returns:
      What lax's returns.

    Raises:
      NativeError: the code cannot be compiled here (see `dcjax.native.build`).
      ValueError: a stride is below 1, or lax refuses the shapes.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[
    ...     0, 1, 1, 0
    ... ]
    Array(18., dtype=float32)
    """
    if not _is_covered(lhs, rhs, options):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    strides = tuple(window_strides)
    if min(strides, default=1) < 1:  # lax's rule accepts these
        raise ValueError(f"window_strides must be at least 1, got {strides}")
    # The compiled code trusts the shapes that it is given: lax's own rule checks them first.
    rule = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    _, height, width, _ = jax.eval_shape(rule, lhs, rhs).shape
    build()
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(lhs, rhs, _Window((height, width), strides, pads))


def _is_covered(lhs: Array, rhs: Array, options: dict[str, Any]) -> bool:
    if lhs.ndim != 4 or not lhs.dtype == rhs.dtype == jnp.float32:
        return False
    if jax.default_backend() != "cpu" or jax.sharding.get_abstract_mesh().explicit_axes:
        return False
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options.get("dimension_numbers"))
    plain = lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
    # Dilations and counts of groups are covered if they are 1. The compiled code is in single
    # precision, which is at least what `precision` asks for.
    others = {**options, "dimension_numbers": None, "precision": None}.values()
    return numbers == plain and all(v in (1, (1, 1), [1, 1]) for v in others if v is not None)


class _Window(NamedTuple):
    """The height and width of the result, the strides and the padding."""

    output: tuple[int, int]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(
    x: Float[Array, "N H W C"], kernel: Float[Array, "kh kw C O"], window: _Window
) -> Float[Array, "N h w O"]:
    def forward(x: Array, kernel: Array) -> Array:
        return _call("forward", x, kernel, (len(x), *window.output, kernel.shape[3]), window)

    def default(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x, kernel, window.strides, window.pads, dimension_numbers=_LAYOUT
        )

    # The default never runs. It shows the tracer of layouts which operation this is.
    on_cpu = functools.partial(_on_shards, forward, sums_batch=False)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=default)


def _forward(x: Array, kernel: Array, window: _Window) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, window), (x, kernel)


def _backward(window: _Window, saved: tuple[Array, Array], y: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def by_image(y: Array, kernel: Array) -> Array:
        return _call("by_image", y, kernel, (len(y), *x.shape[1:]), window)

    def by_kernel(x: Array, y: Array) -> Array:
        return _call("by_kernel", x, y, kernel.shape, window)

    return (
        _on_shards(by_image, y, kernel, sums_batch=False),
        _on_shards(by_kernel, x, y, sums_batch=True),
    )


_conv.defvjp(_forward, _backward)


def _on_shards(
    function: Callable[[Array, Array], Array], a: Array, b: Array, *, sums_batch: bool
) -> Array:
    """Call the function of a batch and a kernel, or of two batches, on each device's part.

    XLA cannot partition a call into compiled code: it would gather the whole batch on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = mesh.auto_axes
    if not axes or len(a) % math.prod(mesh.shape[axis] for axis in axes):
        return function(a, b)

    def local(a: Array, b: Array) -> Array:
        part = function(a, b)
        return lax.psum(part, axes) if sums_batch else part

    cut, whole = PartitionSpec(axes), PartitionSpec()
    specs = ((cut, cut), whole) if sums_batch else ((cut, whole), cut)
    options = {"axis_names": set(axes), "check_vma": False}
    return jax.shard_map(local, in_specs=specs[0], out_specs=specs[1], **options)(a, b)


def _call(name: str, a: Array, b: Array, shape: tuple[int, ...], window: _Window) -> Array:
    """Return one compiled pass as an operation of JAX."""
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(target(name), result, vmap_method="sequential")
    (down, right), ((top, _), (left, _)) = window.strides, window.pads
    steps = {"down": down, "right": right, "top": top, "left": left}
    return call(a, b, **{name: np.int64(value) for name, value in steps.items()})
