"""A convolution whose kernel gradient is fast on the CPU too."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from dcjax._mesh import DEVICES

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_CHUNK_BYTES = 2**20  # what a chunk's patches may take, so that they stay in a core's cache


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated`, with another kernel gradient on the CPU.

    With x (N, H, W, C), padded, and the cotangent y (N, h, w, O) of a convolution of stride s, the
    gradient is ∂K[i, j] = Σ_{n,p,q} x[n, s·p + i, s·q + j]ᵀ y[n, p, q]. XLA computes it on the CPU
    as a convolution whose window is the whole image, at a third to a fifth of the forward pass's
    rate. Here it is one matrix product for each chunk of the batch that fits in a core's cache: of
    x shifted along W (kw·C columns) and y shifted along H (kh·O columns), or, with strides, of all
    patches of x with y.

    Takes effect for two-dimensional NHWC convolutions without groups and dilation, in reverse mode;
    everything else is lax's own, and so is everything on other platforms than the CPU. For Flax:
    `nn.Conv(…, conv_general_dilated=dcjax.models.conv_general_dilated)`. Forward-mode derivatives
    (`jax.jvp`, `jax.hessian`) of those convolutions are not defined; take lax's for them.

    Args:
      lhs: images (N, H, W, C).
      rhs: kernels (kh, kw, C, O).
      window_strides: as lax's.
      padding: as lax's.
      **options: lax's other arguments, by name.

    Returns:
      What lax's returns.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[
    ...     0, 1, 1, 0
    ... ]
    Array(18., dtype=float32)
    """
    return convolution(_IN_JAX, lhs, rhs, window_strides, padding, **options)


class Window(NamedTuple):
    """How the kernel goes over the images: their size and its, steps, zeros, dot's precision."""

    image: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    precision: Any


Pass = Callable[[Array, Array, Window], Array]


class Passes(NamedTuple):
    """How the CPU computes a convolution, its image x, its kernel and the cotangent y given.

    Each is called with a whole batch, or with the part of it that a device has; None is lax's way.

    * `forward(x, kernel, window)`: the convolution.
    * `by_image(y, kernel, window)`, `by_kernel(x, y, window)`: the gradients.
    """

    forward: Pass | None
    by_image: Pass | None
    by_kernel: Pass | None


def convolution(
    passes: Passes,
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated` by these passes, where they cover it."""
    if not _is_covered(lhs, rhs, options):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    image, size = lhs.shape[1:3], rhs.shape[:2]
    window = Window(image, size, strides, pads, options.get("precision"))
    return _conv(lhs, rhs, passes, window)


def _is_covered(lhs: Array, rhs: Array, options: dict[str, Any]) -> bool:
    """Whether it is a plain two-dimensional convolution of channels-last images."""
    if lhs.ndim != 4:
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
    "precision",
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, passes: Passes, window: Window) -> Array:
    plain = functools.partial(_plain, window=window)
    return _computed(passes.forward, plain, window, ((_CUT, _WHOLE), _CUT), x, kernel)


def _forward(
    x: Array, kernel: Array, passes: Passes, window: Window
) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, passes, window), (x, kernel)


def _backward(
    passes: Passes, window: Window, saved: tuple[Array, Array], y: Array
) -> tuple[Array, Array]:
    x, kernel = saved

    def plain_by_image(y: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: _plain(x, kernel, window), x)(y)[0]

    def plain_by_kernel(x: Array, y: Array) -> Array:
        return jax.linear_transpose(lambda kernel: _plain(x, kernel, window), kernel)(y)[0]

    image, whole = ((_CUT, _WHOLE), _CUT), ((_CUT, _CUT), _WHOLE)
    return (
        _computed(passes.by_image, plain_by_image, window, image, y, kernel),
        _computed(passes.by_kernel, plain_by_kernel, window, whole, x, y),
    )


_conv.defvjp(_forward, _backward)

_CUT, _WHOLE = PartitionSpec(DEVICES), PartitionSpec()
_Specs = tuple[
    tuple[PartitionSpec, PartitionSpec], PartitionSpec
]  # of the arguments, of the result


def _plain(x: Array, kernel: Array, window: Window) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.pads,
        dimension_numbers=_LAYOUT,
        precision=window.precision,
    )


def _computed(
    by: Pass | None,
    plain: Callable[[Array, Array], Array],
    window: Window,
    specs: _Specs,
    *args: Array,
) -> Array:
    """On the CPU by this pass, elsewhere by lax, as where shardings are part of the types."""
    if by is None or jax.sharding.get_abstract_mesh().explicit_axes:
        return plain(*args)
    dtype = jax.eval_shape(plain, *args).dtype

    def local(a: Array, b: Array) -> Array:
        return by(a, b, window)

    def on_cpu(*args: Array) -> Array:
        return _on_shards(local, specs, *args).astype(dtype)

    return lax.platform_dependent(*args, cpu=on_cpu, default=plain)


def _on_shards(local: Callable[[Array, Array], Array], specs: _Specs, *args: Array) -> Array:
    """Each device's part where the batch is cut; what is whole is the sum over all parts.

    XLA would gather the whole batch on every device, for a loop over its chunks or a call.
    """
    mesh, (arguments, result) = jax.sharding.get_abstract_mesh(), specs
    if DEVICES not in mesh.auto_axes or args[0].shape[0] % mesh.shape[DEVICES]:
        return local(*args)

    def shard(*args: Array) -> Array:
        part = local(*args)
        return part if result == _CUT else lax.psum(part, DEVICES)

    return jax.shard_map(
        shard, in_specs=arguments, out_specs=result, axis_names={DEVICES}, check_vma=False
    )(*args)


def _kernel_gradient(
    x: Float[Array, "N H W C"], y: Float[Array, "N h w O"], window: Window
) -> Float[Array, "kh kw C O"]:
    """The sum over chunks of the batch, so that what is made of a chunk stays in the cache."""
    gradient = _of_strided if max(window.strides) > 1 else _of_shifted
    images = x.shape[0]
    columns = window.size[1] * x.shape[3] + window.size[0] * y.shape[3]
    chunk = _chunk(images, columns * math.prod(x.shape[1:3]) * 4)
    if chunk == images:
        return gradient(x, y, window)
    shape = (images // chunk, chunk)
    chunks = x.reshape(*shape, *x.shape[1:]), y.reshape(*shape, *y.shape[1:])
    total = jnp.zeros((*window.size, x.shape[3], y.shape[3]), jnp.float32)
    return lax.scan(lambda sum, chunk: (sum + gradient(*chunk, window), None), total, chunks)[0]


def _chunk(images: int, image_bytes: int) -> int:
    """The largest divisor of the batch that fits."""
    most = max(1, _CHUNK_BYTES // max(1, image_bytes))
    return next((n for n in range(min(most, images), 0, -1) if images % n == 0), images)


def _of_shifted(x: Array, y: Array, window: Window) -> Array:
    """Stride 1: x shifted along W against y shifted along H, all pairs of shifts in one product."""
    (kh, kw), (rows, columns) = window.size, window.pads
    height, width, channels = x.shape[1], y.shape[2], x.shape[3]
    x = _padded(x, (0, 0), columns)
    y = _padded(y, (kh - 1 - rows[0], kh - 1 - rows[1]), (0, 0))
    xs = [x[:, :, j : j + width] for j in range(kw)]
    ys = [y[:, kh - 1 - i : kh - 1 - i + height] for i in range(kh)]
    product = _product(xs, ys, window.precision).reshape(kw, channels, kh, y.shape[3])
    return product.transpose(2, 0, 1, 3)


def _of_strided(x: Array, y: Array, window: Window) -> Array:
    """Any stride: all patches of x against y."""
    (kh, kw), (sh, sw), (height, width) = window.size, window.strides, y.shape[1:3]
    channels = x.shape[3]
    x = _padded(x, *window.pads)
    xs = [
        x[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return _product(xs, [y], window.precision).reshape(kh, kw, channels, y.shape[3])


def _padded(x: Array, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    """Zeros around the images; negative numbers cut."""
    nothing = (0, 0, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), (nothing, (*rows, 0), (*columns, 0), nothing))


def _product(xs: Sequence[Array], ys: Sequence[Array], precision: Any) -> Array:
    """The product of the columns in `xs` with those in `ys`, over all images and pixels."""
    left, right = (
        (parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)) for parts in (xs, ys)
    )
    left, right = (a.reshape(math.prod(a.shape[:3]), a.shape[3]) for a in (left, right))
    over_rows = (((0,), (0,)), ((), ()))
    return lax.dot_general(
        left, right, over_rows, precision=precision, preferred_element_type=jnp.float32
    )


_IN_JAX = Passes(forward=None, by_image=None, by_kernel=_kernel_gradient)
