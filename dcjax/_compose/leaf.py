"""One leaf: the blocks of a global leaf, and the copies in and out."""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dcjax._compose.head_weights import divided, merged
from dcjax._layout.layout import LeafLayout


class Block(NamedTuple):
    """A rectangle of entries: its sub-network, its place in that leaf and in the global leaf."""

    subnet: int | None  # None: shared by all, the mean
    narrow: tuple[slice, ...]
    wide: tuple[slice, ...]


def blocks(layout: LeafLayout, subnets: int) -> Iterator[Block]:
    """Yield the rectangles of a leaf, in its factored shape (`_factored`)."""
    for runs in itertools.product(*(order.spans(subnets) for order in layout.axes)):
        owners = [None] if all(run.shared for run, _, _ in runs) else range(subnets)
        for k in owners:
            narrow, wide = [], []
            for (run, at, place), order in zip(runs, layout.axes, strict=True):
                if order.repeat > 1:
                    narrow.append(slice(None))
                    wide.append(slice(None))
                start = place + (0 if run.shared or k is None else k * run.units)
                narrow.append(slice(at, at + run.units))
                wide.append(slice(start, start + run.units))
            yield Block(k, tuple(narrow), tuple(wide))


@functools.partial(jax.jit, static_argnames=("layout", "subnets"))
def compose_leaf(
    stacked: Array,
    into: Array | None,
    head_weights: Float[Array | np.ndarray, " K"],
    factors: Float[Array | np.ndarray, " K"] | None,
    *,
    layout: LeafLayout,
    subnets: int,
) -> Array:
    """Write every sub-network's blocks into zeros, or into an old global leaf.

    `factors[k]`, if given, multiplies sub-network k's blocks: for the head's kernel 1/K. Shared
    entries are the sum of the sub-networks' entries times `head_weights[k]`.
    """
    if layout.is_mean:
        return merged(stacked, head_weights)
    shape = layout.global_shape(subnets)
    parts = stacked.reshape(subnets, *_factored(layout, layout.narrow_shape))
    out = jnp.zeros(shape, stacked.dtype) if into is None else into
    out = out.reshape(_factored(layout, shape))
    for block in blocks(layout, subnets):
        if block.subnet is None:
            part = merged(parts[(slice(None), *block.narrow)], head_weights)
        else:
            part = parts[(block.subnet, *block.narrow)]
            if factors is not None:
                part = (part * factors[block.subnet]).astype(part.dtype)
        out = out.at[block.wide].set(part)
    return out.reshape(shape)


@functools.partial(jax.jit, static_argnames=("layout", "subnets"))
def extract_leaf(
    leaf: Array, head_weights: Float[Array | np.ndarray, " K"], *, layout: LeafLayout, subnets: int
) -> Array:
    """Return a stacked leaf from a global one, the inverse of `compose_leaf`."""
    whole = jnp.sum(head_weights)
    if layout.is_mean:
        return jnp.broadcast_to(divided(leaf, whole), (subnets, *leaf.shape))
    if 0 in layout.narrow_shape:  # an axis without entries has no blocks
        return jnp.zeros((subnets, *layout.narrow_shape), leaf.dtype)
    wide = leaf.reshape(_factored(layout, layout.global_shape(subnets)))
    parts: list[list[Array]] = [[] for _ in range(subnets)]
    for block in blocks(layout, subnets):
        part = wide[block.wide]
        if block.subnet is None:
            part = divided(part, whole)
        elif layout.head:
            part = divided(part, head_weights[block.subnet])
        for own in parts if block.subnet is None else [parts[block.subnet]]:
            own.append(part)
    # A narrow leaf consists of its blocks alone, so joining them needs no zeros.
    return jnp.stack([_joined(own, layout).reshape(layout.narrow_shape) for own in parts])


def _joined(parts: list[Array], layout: LeafLayout) -> Array:
    """Join a sub-network's rectangles, in the order of `blocks`, to its factored leaf."""
    axis = len(_factored(layout, layout.narrow_shape))
    for order in reversed(layout.axes):
        axis -= 1
        step = len(order.runs)
        parts = [jnp.concatenate(parts[i : i + step], axis) for i in range(0, len(parts), step)]
        axis -= order.repeat > 1
    return parts[0]


def rescaled(leaf: Array, factor: float) -> Array:
    """Return a leaf times a factor, which is 1 for leaves that are not floating point."""
    return leaf if factor == 1 else (leaf * factor).astype(leaf.dtype)


@functools.partial(jax.jit, static_argnames=("layout", "subnets"))
def tile_blocks(narrow: Array, *, layout: LeafLayout, subnets: int) -> Array:
    """Repeat a sub-network's leaf in every block of the global leaf, off the diagonal too."""
    wide = narrow
    for i, order in enumerate(layout.axes):
        if not order.is_shared:
            wide = jnp.take(wide, order.entries(subnets), axis=i)
    return wide


def _factored(layout: LeafLayout, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that splits an axis of repeated runs in two: repeats, and one period."""
    shape: list[int] = []
    for order, size in zip(layout.axes, sizes, strict=True):
        shape += [order.repeat, size // order.repeat] if order.repeat > 1 else [size]
    return tuple(shape)
