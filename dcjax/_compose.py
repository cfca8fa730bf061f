"""Composing sub-networks into the global network, and its inverse."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dcjax._layout import Layout, LeafLayout, Path, path_of
from dcjax._stacked import Stacked

PyTree = Any


def compose(params: PyTree, *, like: Layout | Stacked | None = None, into: PyTree = None) -> PyTree:
    """The global network's variables from K sub-networks' variables.

    Sub-network k's kernel W_k of every layer becomes the k-th block of a block-diagonal kernel,
    biases, normalisation parameters and running statistics are concatenated (both in the order that
    the layout says), so that every feature map of the global network is made of the sub-networks'
    feature maps. The head's kernel is the concatenation of the heads' kernels divided by K and its
    bias their mean, so that the global logits are (1/K) Σ_k z_k. A pure function of its arrays: it
    jits, differentiates, vmaps, and keeps dtypes. Leaves that are no floating-point numbers and do
    not grow (counters) are sub-network 0's.

    Args:
      params: what `init`, `stack` or training returned: a `Stacked`, a collection of it
        (`stacked["params"]`), or a pytree with such nodes at any depth. With `like`, any pytree of
        arrays with the leading axis K.
      like: the layout (or a `Stacked` that has it) of a plain pytree.
      into: variables of the global network. Their off-diagonal blocks are kept, and the
        sub-networks' blocks written over the others; without it the off-diagonal blocks are zero.

    Returns:
      The global network's variables: the same structure, without the stacked nodes.

    Raises:
      ValueError: `params` has no layout (remedy: `like`), or structures, shapes or dtypes disagree;
        lists every disagreement.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> x = jax.numpy.ones((2, 16, 16, 3))
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), x)
    >>> network.apply(dcjax.compose(stacked), x).shape
    (2, 10)

    References:
      L. Gu, W. Zhang, J. Liu, X.-C. Cai, ETNA 56 (2022) 157–186.
    """
    if like is not None:
        params = Stacked(params, layout_of(like))
    _require_layouts(params)
    if into is None:
        return jax.tree.map(_compose_node, params, is_leaf=_is_stacked)
    return jax.tree.map(_compose_node, params, into, is_leaf=_is_stacked)


def extract(variables: PyTree, *, like: Layout | Stacked) -> Stacked:
    """The sub-networks in a global network: the inverse of `compose`.

    Every sub-network gets its diagonal blocks and the head's bias, and K times its part of the
    head's kernel, so that `compose(extract(v, like=l))` is v with its off-diagonal blocks set to
    zero. A pure function of its arrays, which keeps dtypes.

    Args:
      variables: the global network's variables, or a collection of them with the layout of it.
      like: the layout, or a `Stacked` that has it.

    Returns:
      The K sub-networks' variables, a `Stacked`.

    Raises:
      ValueError: structure or shapes disagree with the layout; lists every disagreement.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> back = dcjax.extract(dcjax.compose(stacked), like=stacked)
    >>> bool(jax.tree.all(jax.tree.map(jax.numpy.allclose, back, stacked)))
    True
    """
    layout = layout_of(like)
    shapes = {path: leaf.global_shape(layout.subnets) for path, leaf in layout.leaves}
    _check_shapes(variables, shapes, "global network")
    return Stacked(
        jax.tree_util.tree_map_with_path(
            lambda path, leaf: _extract_leaf(
                leaf, layout=layout.by_path[path_of(path)], subnets=layout.subnets
            ),
            variables,
        ),
        layout,
    )


def layout_of(like: Layout | Stacked) -> Layout:
    """The layout that `like` is or has."""
    if isinstance(like, Stacked):
        return like.layout
    if isinstance(like, Layout):
        return like
    raise TypeError(f"like is a dcjax.Layout or a Stacked, got {type(like).__name__}")


def _is_stacked(node: Any) -> bool:
    return isinstance(node, Stacked)


def _require_layouts(params: PyTree) -> None:
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_stacked)
    plain = ["/".join(path_of(path)) or "." for path, node in nodes if not _is_stacked(node)]
    if plain or not nodes:
        raise ValueError(
            "compose needs the layout, and these arrays have none: "
            f"{', '.join(plain[:5]) or '(an empty tree)'}{', …' if len(plain) > 5 else ''}. Pass "
            "what dcjax.init or dcjax.stack returned, or name the layout: "
            "dcjax.compose(params, like=dcjax.layout(network, K, x))"
        )


def _compose_node(stacked: Stacked, into: PyTree = None) -> PyTree:
    layout = stacked.layout
    shapes = {path: (layout.subnets, *leaf.narrow_shape) for path, leaf in layout.leaves}
    _check_shapes(stacked.tree, shapes, f"stack of {layout.subnets} sub-networks")

    def leaf_at(path: Any, leaf: Array, *old: Array) -> Array:
        return _compose_leaf(
            leaf, *old, layout=layout.by_path[path_of(path)], subnets=layout.subnets
        )

    if into is None:
        return jax.tree_util.tree_map_with_path(leaf_at, stacked.tree)
    wide = {path: leaf.global_shape(layout.subnets) for path, leaf in layout.leaves}
    _check_shapes(into, wide, "global network (into=)")
    check_dtypes([stacked.tree, into], ["the sub-networks", "into="])
    return jax.tree_util.tree_map_with_path(leaf_at, stacked.tree, into)


def _check_shapes(tree: PyTree, expected: dict[Path, tuple[int, ...]], what: str) -> None:
    """A `ValueError` that lists every leaf which is missing, unknown or of another shape."""
    got = {path_of(p): jnp.shape(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    wrong = [f"{_name(p)}: missing" for p in expected if p not in got]
    wrong += [f"{_name(p)}: not in the layout" for p in got if p not in expected]
    wrong += [
        f"{_name(p)}: expected shape {shape}, got {got[p]}"
        for p, shape in expected.items()
        if p in got and got[p] != shape
    ]
    if wrong:
        raise ValueError(f"this is no {what} of that layout:\n  " + "\n  ".join(wrong))


def check_dtypes(trees: list[PyTree], names: list[str]) -> None:
    """A `ValueError` that lists every leaf whose dtype is not the same in all trees."""
    tables = [
        {path_of(p): jnp.result_type(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in trees
    ]

    def described(path: Path) -> str:
        return ", ".join(f"{t[path]} in {name}" for t, name in zip(tables, names, strict=True))

    differing = [path for path in tables[0] if len({table[path] for table in tables}) > 1]
    wrong = [f"{_name(path)}: {described(path)}" for path in differing]
    if wrong:
        raise ValueError("dtypes disagree:\n  " + "\n  ".join(wrong))


def _name(path: Path) -> str:
    return "/".join(path) or "the leaf"


class _Block(NamedTuple):
    """A rectangle of entries: whose it is, its place in a sub-network's leaf and the global one."""

    subnet: int | None  # None: shared by all, the mean
    narrow: tuple[slice, ...]
    wide: tuple[slice, ...]


def _blocks(layout: LeafLayout, subnets: int) -> Iterator[_Block]:
    """The rectangles of a leaf, in its factored shape (`_factored`)."""
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
            yield _Block(k, tuple(narrow), tuple(wide))


def _factored(layout: LeafLayout, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which an axis of repeated runs is two: the repeats, and one period."""
    shape: list[int] = []
    for order, size in zip(layout.axes, sizes, strict=True):
        shape += [order.repeat, size // order.repeat] if order.repeat > 1 else [size]
    return tuple(shape)


@functools.partial(jax.jit, static_argnames=("layout", "subnets"))
def _compose_leaf(
    stacked: Array, into: Array | None = None, *, layout: LeafLayout, subnets: int
) -> Array:
    """One global leaf: K·(blocks) slices written into zeros, or into the old leaf."""
    if layout.is_mean:
        return _mean(stacked)
    shape = layout.global_shape(subnets)
    parts = stacked.reshape(subnets, *_factored(layout, layout.narrow_shape))
    out = jnp.zeros(shape, stacked.dtype) if into is None else into
    out = out.reshape(_factored(layout, shape))
    for block in _blocks(layout, subnets):
        if block.subnet is None:
            part = _mean(parts[(slice(None), *block.narrow)])
        else:
            part = parts[(block.subnet, *block.narrow)]
            part = (part / subnets).astype(part.dtype) if layout.head else part
        out = out.at[block.wide].set(part)
    return out.reshape(shape)


def _mean(parts: Array) -> Array:
    """The mean over the sub-networks; of what cannot be averaged (counters), the first."""
    if not jnp.issubdtype(parts.dtype, jnp.inexact):
        return parts[0]
    return jnp.mean(parts, axis=0).astype(parts.dtype)


@functools.partial(jax.jit, static_argnames=("layout", "subnets"))
def _extract_leaf(leaf: Array, *, layout: LeafLayout, subnets: int) -> Array:
    """One stacked leaf from a global one."""
    if layout.is_mean:
        return jnp.broadcast_to(leaf, (subnets, *leaf.shape))
    wide = leaf.reshape(_factored(layout, layout.global_shape(subnets)))
    shape = _factored(layout, layout.narrow_shape)
    out = jnp.zeros((subnets, *shape), leaf.dtype)
    for block in _blocks(layout, subnets):
        part = wide[block.wide]
        if layout.head and block.subnet is not None:
            part = part * subnets
        owner = slice(None) if block.subnet is None else block.subnet
        out = out.at[(owner, *block.narrow)].set(part)
    return out.reshape(subnets, *layout.narrow_shape)
