"""Compose sub-networks into the global network; extract them again."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dcjax._checks import (
    compare_leaves,
    dtype_of,
    has_values,
    leaves_of,
    path_name,
    raise_listed,
    shown,
)
from dcjax._compose.head_weights import head_weights_of, without_diverged
from dcjax._compose.leaf import compose_leaf, extract_leaf, rescaled
from dcjax._compose.stacked import Stacked, is_stacked
from dcjax._layout.layout import Layout, LeafLayout, Path, path_of


def compose(
    params: PyTree,
    *,
    like: Layout | Stacked | None = None,
    into: PyTree = None,
    weights: Float[Array | np.ndarray, " K"] | None = None,
) -> PyTree:
    """Return the global network's variables from K sub-networks' variables.

    Sub-network k's kernel of every layer becomes the k-th block of a block-diagonal kernel. Biases,
    normalisation parameters and running statistics are concatenated. Both follow the order in the
    layout, so every feature map of the global network consists of the sub-networks' feature maps.
    The head's kernel concatenates w_k times the heads' kernels, and its bias is the sum of w_k
    times their biases, so the global logits are Σ_k w_k z_k, with w_k = 1/K by default. A leaf
    with a factor in the layout is multiplied by it. Integer leaves that do not grow and that the
    logits do not depend on (counters) are sub-network 0's.

    A network without a head, such as a feature extractor, composes too: its output is the
    concatenation of the sub-networks' outputs. `Layout.has_head` tells, and `verify` reports it.

    A pure function of its arrays: it jits, differentiates, vmaps, and keeps dtypes.

    Args:
      params: what `init`, `stack` or training returned: a `Stacked`, a collection of it
        (`stacked["params"]`), or a pytree with such nodes at any depth. With `like`, any pytree of
        arrays with the leading axis K.
      like: the layout (or a `Stacked` that has it) of a plain pytree.
      into: variables of the global network, with the same paths, such as `network.init` gives.
        Their off-diagonal blocks stay; the sub-networks' blocks replace the diagonal ones. Without
        it off-diagonal blocks are zero, which keeps the composed network exact.
      weights: (K,), non-negative with sum 1: the w_k of a weighted mean. `bounds` takes them too. A
        sub-network with weight 0 that has a NaN or an infinite value is composed as zeros.

    Returns:
      The global network's variables, of the same structure without the stacked nodes.

    Raises:
      ValueError: `params` has no layout (remedy: `like`). Structures, shapes or dtypes disagree, a
        leaf is not an array of numbers, or integers would have to be averaged or divided: the
        message lists every such leaf. The weights are not convex (not checked under `jit`).
      TypeError: an argument has the wrong type.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> x = jax.numpy.ones((2, 16, 16, 3))
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), x)
    >>> network.apply(dcjax.compose(stacked), x).shape
    (2, 10)
    >>> trusted = dcjax.compose(stacked, weights=jax.numpy.array([0.4, 0.3, 0.2, 0.1]))

    References:
      L. Gu, W. Zhang, J. Liu, X.-C. Cai, ETNA 56 (2022) 157–186, composes by the mean. The
      weighted mean is ours.
    """
    if like is not None:
        params = Stacked(params, layout_of(like))
    _check_nodes(params)
    nodes, structure = jax.tree.flatten(params, is_leaf=is_stacked)
    old = [{}] * len(nodes) if into is None else _old_leaves(nodes, structure, into)

    def node(stacked: Stacked, leaves: dict[Path, Any]) -> PyTree:
        head_weights = head_weights_of(weights, len(stacked))
        weighted = weights is not None
        tree = without_diverged(stacked.tree, head_weights) if weighted else stacked.tree
        return _compose_tree(tree, leaves, head_weights, layout=stacked.layout)

    return structure.unflatten(map(node, nodes, old))


def extract(
    variables: PyTree,
    *,
    like: Layout | Stacked,
    weights: Float[Array | np.ndarray, " K"] | None = None,
) -> Stacked:
    """Return the sub-networks in a global network: the inverse of `compose`.

    Every sub-network gets its diagonal blocks, the head's bias, and K times its part of the head's
    kernel, so `compose(extract(v, like=l))` is v with its off-diagonal blocks set to zero. A pure
    function of its arrays, which keeps dtypes.

    Args:
      variables: the global network's variables, or one collection of them.
      like: the layout of `variables`, or a `Stacked` that has it.
      weights: the weights it was composed with, all positive: each part is divided by w_k.

    Returns:
      The K sub-networks' variables, a `Stacked`.

    Raises:
      ValueError: structure or shapes disagree with the layout, a leaf is not an array of numbers,
        or integers would have to be divided: the message lists every such leaf. A weight is 0, and
        that sub-network's head is lost.
      TypeError: an argument has the wrong type.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> back = dcjax.extract(dcjax.compose(stacked), like=stacked)
    >>> bool(jax.tree.all(jax.tree.map(jax.numpy.allclose, back, stacked)))
    True
    """
    layout = layout_of(like)
    head_weights = head_weights_of(weights, layout.subnets, positive=True)
    _check_kinds(check_shapes(variables, layout.global_shapes, "global network"), layout)

    return Stacked(_extract_tree(variables, head_weights, layout=layout), layout)


def layout_of(like: Layout | Stacked) -> Layout:
    """Return the layout that `like` is or has."""
    layout = like.layout if isinstance(like, Stacked) else like
    if isinstance(layout, Layout):
        return layout
    inside = "a Stacked whose layout is " if layout is not like else ""
    raise TypeError(f"like is a dcjax.Layout or a Stacked, got {inside}{shown(layout)}")


def _check_nodes(params: PyTree) -> None:
    """Refuse parameters without a layout, or with leaves that do not fit it."""
    nodes = leaves_of(params, "tree of parameters", is_leaf=is_stacked)
    plain = ["/".join(path) or "." for path, node in nodes.items() if not is_stacked(node)]
    if plain or not nodes:
        raise ValueError(
            "compose needs the layout, and these arrays do not have one: "
            f"{', '.join(plain[:5]) or '(an empty tree)'}{', …' if len(plain) > 5 else ''}. Pass "
            "what dcjax.init, dcjax.stack or trainer.finish(state) returned, or name the layout: "
            "dcjax.compose(params, like=dcjax.layout(network, K, x))"
        )
    for node in nodes.values():
        check_stack(node.tree, layout_of(node))


def _old_leaves(nodes: list[Stacked], structure: Any, into: PyTree) -> list[dict[Path, Any]]:
    """Return for every `Stacked` the leaves of `into` that stand in its place."""
    try:
        given = structure.flatten_up_to(into)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "into= must have the structure of params, with the global network's variables in the "
            f"place of each Stacked: {error}"
        ) from error
    for node, wide in zip(nodes, given, strict=True):
        found = check_shapes(wide, node.layout.global_shapes, "global network (into=)")
        # jit drops the leaves that it does not read, so that it would refuse some and not others.
        empty = [path_name(path) for path, leaf in found.items() if not has_values(leaf)]
        raise_listed("into= must hold values; these are abstract or deleted:", empty)
        check_dtypes([node.tree, wide], ["the sub-networks", "into="])
    # By path, as they may be in other containers than the sub-networks', such as a FrozenDict.
    return [leaves_of(wide, "tree of into=") for wide in given]


# One program for all leaves: a call for each leaf would take longer than copying it.
@functools.partial(jax.jit, static_argnames="layout")
def _compose_tree(
    tree: PyTree,
    into: dict[Path, Array],
    head_weights: Float[Array | np.ndarray, " K"],
    *,
    layout: Layout,
) -> PyTree:
    """Compose every leaf, into the given global leaf of its path if there is one."""

    def at(keys: Any, leaf: Array) -> Array:
        path = path_of(keys)
        rule = layout.by_path[path]
        merge = _merge_weights(head_weights, rule)
        factors = head_weights if rule.head else None
        old = into.get(path)
        leaf = rescaled(leaf, rule.factor)
        return compose_leaf(leaf, old, merge, factors, layout=rule, subnets=layout.subnets)

    return jax.tree_util.tree_map_with_path(at, tree)


@functools.partial(jax.jit, static_argnames="layout")
def _extract_tree(
    variables: PyTree, head_weights: Float[Array | np.ndarray, " K"], *, layout: Layout
) -> PyTree:
    def at(path: Any, leaf: Array) -> Array:
        rule = layout.by_path[path_of(path)]
        merge = _merge_weights(head_weights, rule)
        parts = extract_leaf(leaf, merge, layout=rule, subnets=layout.subnets)
        return rescaled(parts, 1 / rule.factor)

    return jax.tree_util.tree_map_with_path(at, variables)


def _merge_weights(
    head_weights: Float[Array | np.ndarray, " K"], rule: LeafLayout
) -> Float[Array | np.ndarray, " K"]:
    """Return the weights that merge a leaf: plain means where the logits do not depend on it."""
    return head_weights if rule.used else jnp.full_like(head_weights, 1 / len(head_weights))


def check_stack(tree: PyTree, layout: Layout) -> None:
    """Refuse a tree with leaves that are not stacks of K sub-networks' leaves; list them."""
    what = f"stack of {layout.subnets} sub-networks"
    _check_kinds(check_shapes(tree, layout.stack_shapes, what), layout)


def check_shapes(
    tree: PyTree, expected: Mapping[Path, tuple[int, ...]], what: str
) -> dict[Path, Any]:
    """Return the leaves by their paths.

    Raises:
      ValueError: leaves are missing, unknown, of another shape, or not arrays; lists them all.
    """
    leaves, wrong = compare_leaves(tree, expected, what)
    raise_listed(f"this does not fit the layout of a {what}:", wrong)
    return leaves


def _check_kinds(leaves: Mapping[Path, Any], layout: Layout) -> None:
    """Refuse integers that need a mean or a division by K, and random keys side by side."""
    if layout.subnets == 1:
        return
    dtypes = {path: dtype_of(leaf) for path, leaf in leaves.items()}
    inexact = {dtype for dtype in {*dtypes.values()} if jnp.issubdtype(dtype, jnp.inexact)}
    wrong = []
    for path, dtype in dtypes.items():
        if dtype in inexact:
            continue
        rule = layout.by_path[path]
        if rule.used and (rule.head or rule.has_shared):
            wrong.append(
                f"{path_name(path)}: {dtype}, but the logits need its mean or its quotient by K"
            )
        elif jnp.issubdtype(dtype, jax.dtypes.prng_key) and not rule.is_mean:
            wrong.append(f"{path_name(path)}: random keys, which cannot stand side by side")
    remedy = "Make them floating point: jax.tree.map(lambda leaf: leaf.astype(float), tree)"
    raise_listed("expected floating-point numbers, got:", wrong, remedy)


def check_dtypes(trees: list[PyTree], names: list[str]) -> None:
    """Refuse trees in which a leaf has different dtypes; list every such leaf."""
    tables = [
        {path_of(p): dtype_of(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in trees
    ]

    def described(path: Path) -> str:
        return ", ".join(f"{t[path]} in {name}" for t, name in zip(tables, names, strict=True))

    differing = [path for path in tables[0] if len({table[path] for table in tables}) > 1]
    wrong = [f"{path_name(path)}: {described(path)}" for path in differing]
    raise_listed("dtypes disagree:", wrong)
