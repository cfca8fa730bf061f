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
      ValueError: a stride is below 1, the kernel has no taps, or lax refuses the shapes.
      TypeError: a forward-mode derivative is asked for.

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
    if 0 in rhs.shape[:2]:  # so does it, XLA does not
        raise ValueError(f"the kernel must have at least one tap, got rhs of shape {rhs.shape}")
    # lax's own rule checks the shapes, with errors that its users know.
    rule = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    output = jax.eval_shape(rule, lhs, rhs).shape[1:3]
    build()
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    window = _Window(lhs.shape[1:3], rhs.shape[:2], output, strides, pads)
    try:
        return _pass(lhs, rhs, "forward", window)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "dcjax.native.conv_general_dilated has no forward-mode derivative (jax.jvp, "
            "jax.jacfwd, jax.hessian); take jax.lax.conv_general_dilated for it"
        ) from error


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
    """Height and width of the image, the kernel and the result; the strides and the padding."""

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def _convolve(
    x: Float[Array, "N H W C"], kernel: Float[Array, "kh kw C O"], window: _Window
) -> Float[Array, "N h w O"]:
    def default(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x, kernel, window.strides, window.pads, dimension_numbers=_LAYOUT
        )

    # The default never runs. It shows the tracer of layouts which operation this is.
    on_cpu = functools.partial(_compiled, name="forward", window=window)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=default)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pass(a: Array, b: Array, name: str, window: _Window) -> Array:
    """Compute y of x and the kernel, or x of y and the kernel, or the kernel of x and y.

    Each pass is linear in a and in b, and its gradients by them are the other two.
    """
    if name == "forward":
        return _convolve(a, b, window)
    return _compiled(a, b, name, window)


def _forward(a: Array, b: Array, name: str, window: _Window) -> tuple[Array, tuple[Array, Array]]:
    return _pass(a, b, name, window), (a, b)


def _backward(
    name: str, window: _Window, saved: tuple[Array, Array], result: Array
) -> tuple[Array, Array]:
    a, b = saved
    if name == "forward":  # x, kernel
        return _pass(result, b, "by_image", window), _pass(a, result, "by_kernel", window)
    if name == "by_image":  # y, kernel
        return _pass(result, b, "forward", window), _pass(result, a, "by_kernel", window)
    return _pass(b, result, "by_image", window), _pass(a, result, "forward", window)  # x, y


_pass.defvjp(_forward, _backward)


def _compiled(a: Array, b: Array, name: str, window: _Window) -> Array:
    """Run a pass on each device's part of the batch."""

    def run(a: Array, b: Array) -> Array:
        shape = {
            "forward": (len(a), *window.output, b.shape[3]),
            "by_image": (len(a), *window.image, b.shape[2]),
            "by_kernel": (*window.kernel, a.shape[3], b.shape[3]),
        }[name]
        result = jax.ShapeDtypeStruct(shape, jnp.float32)
        call = jax.ffi.ffi_call(target(name), result, vmap_method="sequential")
        padding = [size for pads in window.pads for size in pads]
        return call(
            a, b, strides=np.array(window.strides, np.int64), padding=np.array(padding, np.int64)
        )

    return _on_shards(run, a, b, sums_batch=name == "by_kernel")


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
