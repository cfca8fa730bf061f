"""Decompositions of samples: pairs of pure functions `split` and `join`.

`split` gives the K sub-networks' images, `join` the image of the composed global network. With
`replicate` all see the image itself, and the stem's kernels are concatenated. For the other ways
`join` concatenates the images of `split` along the channels, and the global stem is block-diagonal.
The abstract of the method's source does not say how samples are decomposed; this library chose.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from dcjax import _checks


class Samples(NamedTuple):
    """A way to decompose samples among K sub-networks.

    Attributes:
        name: The way's name, one of `NAMES`.
        subnets: K.
        split: Images (N, H, W, C), after augmentation and normalisation, to what the sub-networks
            see, (K, N, h, w, c). Any N; pure, so it jits, vmaps and differentiates.
        join: The same images to what the global network sees: `x` itself for `replicate`, otherwise
            exactly `jnp.concatenate(list(split(x)), -1)`, (N, h, w, K·c).
    """

    name: str
    subnets: int
    split: Callable[[Shaped[Array, "N ..."]], Shaped[Array, "K N ..."]]
    join: Callable[[Shaped[Array, "N ..."]], Shaped[Array, "N ..."]]


def replicate(subnets: int) -> Samples:
    """Show every sub-network, and the global network, the whole image.

    Fits any K, and arrays of any rank and dtype.

    Args:
        subnets: K.

    Returns:
        `split`: (N, …) → (K, N, …), K copies; `join`: the identity.

    Raises:
        ValueError: K is not positive.

    >>> replicate(4).split(jnp.ones((8, 32, 32, 3))).shape
    (4, 8, 32, 32, 3)
    """
    subnets = _at_least(1, "replicate", "K", subnets)
    split = _of_arrays("replicate", lambda x: jnp.broadcast_to(x, (subnets, *x.shape)))
    return Samples("replicate", subnets, split, _of_arrays("replicate", lambda x: x))


def channels(subnets: int) -> Samples:
    """Show every sub-network some of the image's channels.

    Where K divides C, sub-network k sees channels [k·C/K, (k+1)·C/K). Where C divides K, every
    channel is shared by K/C sub-networks: k sees channel k mod C, and the global network's image
    repeats the channels K/C times. So RGB images fit K = 1 and the multiples of 3.

    Args:
        subnets: K.

    Returns:
        `split`: (N, H, W, C) → (K, N, H, W, max(C/K, 1)). Any dtype.

    Raises:
        ValueError: K is not positive; in `split` and `join`, neither of K and C divides the other.

    >>> channels(6).split(jnp.ones((8, 32, 32, 3))).shape
    (6, 8, 32, 32, 1)
    """
    subnets = _at_least(1, "channels", "K", subnets)

    def views(x: Shaped[Array, "N H W C"]) -> list[Array]:
        count = x.shape[-1]
        if count % subnets == 0:
            return jnp.split(x, subnets, axis=-1)
        if subnets % count == 0:
            return jnp.split(x, count, axis=-1) * (subnets // count)
        divisors = ", ".join(str(k) for k in range(1, count) if count % k == 0)
        raise ValueError(
            f"channels: K = {subnets} sub-networks cannot share images of {count} channels; "
            f"expected K = {divisors} or a multiple of {count}"
        )

    return _concatenated("channels", subnets, views)


def tiles(subnets: int | Sequence[int], *, overlap: int = 0) -> Samples:
    """Show every sub-network a tile of the image: a grid of rectangles of one size, with overlap.

    Along a side of H pixels cut into R ≥ 2 parts, a tile is its part of H/R pixels extended by
    `overlap` pixels on both sides. A tile at the image's border cannot be extended beyond it: it is
    shifted inward (nothing is padded), and reaches 2·overlap pixels into its only neighbour:

        height h = H/R + 2·overlap,  first row of tile r = clip(r·H/R − overlap, 0, H − h).

    A side that is not cut (R = 1) is seen whole. Fits K = rows · columns whose rows divide H and
    columns W.

    Args:
        subnets: K, for the most square grid of K tiles with rows ≤ columns (4: 2×2, 8: 2×4,
            3: 1×3), or the grid itself (rows, columns). Sub-networks are numbered row by row.
        overlap: Pixels by which a tile is extended on every side, at most (H − H/R)/2.

    Returns:
        `split`: (N, H, W, C) → (K, N, h, w, C). Any dtype.

    Raises:
        ValueError: K or the grid is not positive, or overlap negative; in `split` and `join`, the
            grid does not divide the image, or the extended tile is larger than the image.

    >>> tiles(4, overlap=2).split(jnp.ones((8, 32, 32, 3))).shape
    (4, 8, 20, 20, 3)
    """
    rows, columns = _grid("tiles", subnets)
    overlap = _at_least(0, "tiles", "overlap", overlap)

    def views(x: Shaped[Array, "N H W C"]) -> list[Array]:
        height, width = _divided("tiles", x, rows, columns)
        tops, lefts = _spans(height, rows, overlap), _spans(width, columns, overlap)
        return [x[:, top, left] for top in tops for left in lefts]

    return _concatenated("tiles", rows * columns, views)


def phases(subnets: int | Sequence[int]) -> Samples:
    """Show every sub-network the whole scene, coarser: one phase of a strided sub-sampling.

    With strides (R, S), the sub-network of phase (i, j) sees `x[:, i::R, j::S]`. Every pixel is in
    exactly one phase. Fits K = R · S whose R divides H and S divides W.

    Args:
        subnets: K, for the most square grid of strides with R ≤ S (4: 2×2, 8: 2×4, 3: 1×3), or the
            strides (R, S) themselves. Sub-network k has phase (k // S, k mod S).

    Returns:
        `split`: (N, H, W, C) → (K, N, H/R, W/S, C). Any dtype.

    Raises:
        ValueError: K or a stride is not positive; in `split` and `join`, the strides do not divide
            the image.

    >>> phases(4).split(jnp.ones((8, 32, 32, 3))).shape
    (4, 8, 16, 16, 3)
    """
    rows, columns = _grid("phases", subnets)

    def views(x: Shaped[Array, "N H W C"]) -> list[Array]:
        _divided("phases", x, rows, columns)
        return [x[:, i::rows, j::columns] for i in range(rows) for j in range(columns)]

    return _concatenated("phases", rows * columns, views)


# Standard deviations of the orthonormal Haar sub-bands of CIFAR-10's 50,000 training images (a copy
# stored as JPEG), each colour normalised to mean 0 and variance 1. Their neighbouring pixels
# correlate by 0.92 to 0.93, as is common in natural images.
_DEVIATIONS: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    4: (1.932, 0.339, 0.367, 0.131),
    16: (
        *(3.623, 0.838, 0.961, 0.423),
        *(0.388, 0.444, 0.197, 0.271),
        *(0.435, 0.189, 0.492, 0.268),
        *(0.087, 0.116, 0.120, 0.183),
    ),
}


def bands(subnets: int, *, deviations: Sequence[float] | None = None) -> Samples:
    """Show every sub-network a Haar sub-band of the image, scaled to unit variance.

    One level maps every 2×2 block (a b; c d) to

        average (a+b+c+d)/2,  detail along the width (a−b+c−d)/2,  along the height (a+b−c−d)/2,
        along both (a−b−c+d)/2,

    an orthonormal transform; the next level splits all four bands again (a wavelet packet, since
    all sub-networks need images of one size). Sub-network k's band is spelt by k's base-4 digits,
    the first level's first. Each band is then divided by a fixed number, its standard deviation
    over natural images: without that the average would have some 200 times the variance of the
    detail along both. The map is linear and invertible, and looks at no batch. Fits K = 4^levels,
    with 2^levels dividing H and W.

    Args:
        subnets: K = 4^levels.
        deviations: The K orthonormal bands' standard deviations. The default, for K ≤ 16, was
            measured on the training images of CIFAR-10 with every colour normalised to mean 0 and
            variance 1, and gives variance 1 for images normalised in that way. For other data,
            measure them: `bands(K, deviations=[1] * K).split(x).std((1, 2, 3, 4))`.

    Returns:
        `split`: (N, H, W, C) → (K, N, H/2^levels, W/2^levels, C), in the dtype of the images, which
        must be floating-point.

    Raises:
        TypeError: In `split` and `join`, the images are not floating-point.
        ValueError: K is not a power of 4, deviations are not K positive numbers, or are missing for
            K > 16; in `split` and `join`, 2^levels does not divide the image.

    References:
        A. Haar, Zur Theorie der orthogonalen Funktionensysteme, Math. Ann. 69 (1910) 331–371.

    >>> bands(4, deviations=[1, 1, 1, 1]).split(jnp.ones((1, 2, 2, 1))).ravel().tolist()
    [2.0, 0.0, 0.0, 0.0]
    """
    subnets = _at_least(1, "bands", "K", subnets)
    levels = (subnets.bit_length() - 1) // 2
    if subnets != 4**levels:
        raise ValueError(f"bands: K = {subnets} is not a power of 4; it fits K = 1, 4, 16, 64, …")
    factors = [0.5**levels / deviation for deviation in _deviations(subnets, deviations)]

    def views(x: Float[Array, "N H W C"]) -> list[Array]:
        _divided("bands", x, 2**levels, 2**levels)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"bands expects floating-point images, got {x.dtype}: normalise them first"
            )
        found = [x]  # 2^levels times the bands: `factors` hold the powers of 1/2
        for axis in (1, 2) * levels:
            halves = [[jax.lax.slice_in_dim(y, i, None, 2, axis) for i in (0, 1)] for y in found]
            found = [y for even, odd in halves for y in (even + odd, even - odd)]
        return [y * factor for y, factor in zip(found, factors, strict=True)]

    return _concatenated("bands", subnets, views)


_WAYS: dict[str, Callable[[int], Samples]] = {
    way.__name__: way for way in (replicate, channels, tiles, phases, bands)
}
NAMES: tuple[str, ...] = tuple(_WAYS)
"""The names of all ways, as `make` takes them."""


def make(name: str, subnets: int) -> Samples:
    """Return the way of that name for K sub-networks, its other arguments at their defaults.

    Args:
        name: One of `NAMES`.
        subnets: K.

    Returns:
        The way's `split` and `join`.

    Raises:
        ValueError: The name is unknown, or the way does not fit K.

    >>> make("tiles", 4).name
    'tiles'
    """
    if not isinstance(name, str) or name not in _WAYS:
        raise ValueError(
            f"unknown way to decompose samples: {_checks.shown(name)}; choose from "
            f"{', '.join(NAMES)}"
        )
    return _WAYS[name](subnets)


def _concatenated(name: str, subnets: int, views: Callable[[Array], list[Array]]) -> Samples:
    """Return the way whose global image is the concatenation of the sub-networks' views."""

    def checked(x: Shaped[Array, "N ..."]) -> list[Array]:
        if x.ndim != 4:
            raise ValueError(
                f"{name} expects a batch of images (N, H, W, C), got an array of shape {x.shape}"
            )
        return views(x)

    return Samples(
        name,
        subnets,
        # jit: otherwise each slice compiles by itself
        _of_arrays(name, jax.jit(lambda x: jnp.stack(checked(x)))),
        _of_arrays(name, jax.jit(lambda x: jnp.concatenate(checked(x), axis=-1))),
    )


def _of_arrays(name: str, function: Callable[[Any], Array]) -> Callable[[Any], Array]:
    """Return the function, with an error for anything but an array."""

    def checked(x: Any) -> Array:
        if not getattr(x, "shape", ()) or _checks.array_fault(x):
            raise TypeError(
                f"{name} expects a batch of images, an array (N, …), got {_checks.shown(x)}"
            )
        return function(x)

    return checked


def _at_least(least: int, way: str, what: str, value: Any) -> int:
    """Return the value as a Python int, or raise an error."""
    try:
        whole = int(operator.index(value))
    except Exception as error:  # arrays have errors of their own
        raise TypeError(f"{way}: {what} must be an integer, got {_checks.shown(value)}") from error
    if not least <= whole < 2**31:
        raise ValueError(f"{way}: {what} must be at least {least} and below 2³¹, got {whole}")
    return whole


def _grid(way: str, subnets: int | Sequence[int]) -> tuple[int, int]:
    """Return the grid (rows, columns): the given one, or the most square one of K cells."""
    if not isinstance(subnets, Sequence) or isinstance(subnets, (str, bytes)):
        return _most_square(_at_least(1, way, "K", subnets))
    if len(subnets) != 2:
        raise ValueError(f"{way}: a grid must be (rows, columns), got {tuple(subnets)}")
    rows, columns = (
        _at_least(1, way, f"in grid {tuple(subnets)} a side", side) for side in subnets
    )
    return rows, columns


def _most_square(subnets: int) -> tuple[int, int]:
    """Return the grid of K cells with rows ≤ columns that is nearest to a square."""
    rows = max(d for d in range(1, math.isqrt(subnets) + 1) if subnets % d == 0)
    return rows, subnets // rows


def _divided(way: str, x: Shaped[Array, "N H W C"], rows: int, columns: int) -> tuple[int, int]:
    """Return (H, W) of images that the grid divides, or raise an error."""
    height, width = x.shape[1:3]
    if height % rows or width % columns:
        known = (1, 4, 16, 64) if way == "bands" else range(1, 65)
        grids = {k: _most_square(k) for k in known}
        fits = [str(k) for k, (r, c) in grids.items() if height % r == 0 and width % c == 0]
        grid = (
            "" if way == "bands" else f", or a grid (rows, columns) that divides {height}×{width}"
        )
        raise ValueError(
            f"{way}: a grid of {rows}×{columns} (K = {rows * columns}) does not divide images of "
            f"{height}×{width}; up to 64 these K fit: {', '.join(fits)}{grid}"
        )
    return height, width


def _spans(side: int, parts: int, overlap: int) -> list[slice]:
    """Return the tiles' pixels along one side of the image."""
    part = side // parts
    size = part + 2 * overlap if parts > 1 else side
    if size > side:
        raise ValueError(
            f"tiles: overlap {overlap} extends tiles of {part} to {size} of {side} pixels; it can "
            f"be at most {(side - part) // 2} for {parts} tiles along that side"
        )
    starts = (min(max(i * part - overlap, 0), side - size) for i in range(parts))
    return [slice(start, start + size) for start in starts]


def _deviations(subnets: int, given: Sequence[float] | None) -> Sequence[float]:
    """Return the bands' standard deviations: the given ones, or the measured ones."""
    if given is None:
        if subnets not in _DEVIATIONS:
            raise ValueError(
                f"bands: no standard deviations are known for K = {subnets}, only for K = "
                f"{', '.join(map(str, _DEVIATIONS))}: measure them on your images, give deviations="
            )
        return _DEVIATIONS[subnets]
    try:
        deviations = np.asarray(given, float).reshape(-1).tolist()
    except Exception as error:
        raise TypeError(f"bands: deviations must be numbers, got {_checks.shown(given)}") from error
    if len(deviations) != subnets or not all(0 < value < math.inf for value in deviations):
        raise ValueError(
            f"bands: deviations must be K = {subnets} positive numbers, got {deviations}"
        )
    return deviations
