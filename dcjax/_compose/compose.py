"""Compose sub-networks into the global network; extract them again."""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from dcjax._checks import (
    array_fault,
    array_of,
    check_key,
    compare_leaves,
    dtype_of,
    leaves_of,
    path_name,
    raise_listed,
    same_kind,
    shown,
)
from dcjax._compose.head_weights import head_weights_of, without_diverged
from dcjax._compose.leaf import compose_leaf, extract_leaf
from dcjax._compose.stacked import Stacked, is_stacked
from dcjax._layout.layout import Layout, LeafLayout, Path, path_of

Initializer = Callable[[Key[Array, ""], tuple[int, ...], Any], Array]


def compose(
    params: PyTree,
    *,
    like: Layout | Stacked | None = None,
    into: PyTree = None,
    head: Literal["mean", "sum"] = "mean",
    weights: Float[Array | np.ndarray, " K"] | None = None,
    off_diagonal: Literal["zeros"] | Initializer = "zeros",
    off_diagonal_scale: float = 1.0,
    key: Key[Array, ""] | None = None,
) -> PyTree:
    """Return the global network's variables from K sub-networks' variables.

    Sub-network k's kernel of every layer becomes the k-th block of a block-diagonal kernel. Biases,
    normalisation parameters and running statistics are concatenated. Both follow the order in the
    layout, so every feature map of the global network consists of the sub-networks' feature maps.
    The head's kernel concatenates w_k times the heads' kernels, and its bias is the sum of w_k
    times their biases, so the global logits are Σ_k w_k z_k, with w_k = 1/K by default. Integer
    leaves that do not grow and that the logits do not depend on (counters) are sub-network 0's.

    A pure function of its arrays: it jits, differentiates, vmaps, and keeps dtypes.

    Args:
      params: what `init`, `stack` or training returned: a `Stacked`, a collection of it
        (`stacked["params"]`), or a pytree with such nodes at any depth. With `like`, any pytree of
        arrays with the leading axis K.
      like: the layout (or a `Stacked` that has it) of a plain pytree.
      into: variables of the global network, with the same paths. Their off-diagonal blocks stay;
        the sub-networks' blocks replace the diagonal ones. Without it off-diagonal blocks are zero.
      head: `"mean"`: the global logits are the sub-networks' mean, and the bounds hold. `"sum"`:
        the merging layer gives the sub-networks' sum: the same classes, with higher confidence
        (a term added behind that layer is added once, not K times).
      weights: (K,), non-negative with sum 1: the w_k of a weighted mean. `bounds` takes them too. A
        sub-network with weight 0 that has a NaN or an infinite value is composed as zeros.
      off_diagonal: the blocks between different sub-networks: `"zeros"`, which keeps the composed
        network exact, or an initialiser such as `jax.nn.initializers.he_normal()`, which is called
        with the global leaf's shape and so uses the global layer's fan-in.
      off_diagonal_scale: a factor on the initialiser's values.
      key: the initialiser's random key; the path of each leaf is folded in.

    Returns:
      The global network's variables: the same structure, without the stacked nodes.

    Raises:
      ValueError: `params` has no layout (remedy: `like`). Structures, shapes or dtypes disagree, a
        leaf is not an array of numbers, or integers would have to be averaged or divided: the
        message lists every such leaf. The weights are not convex (not checked under `jit`) or go
        with `head="sum"`. An initialiser comes without a key, or with `into`.
      TypeError: an argument has the wrong type.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> x = jax.numpy.ones((2, 16, 16, 3))
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), x)
    >>> network.apply(dcjax.compose(stacked), x).shape
    (2, 10)
    >>> trusted = dcjax.compose(stacked, weights=jax.numpy.array([0.4, 0.3, 0.2, 0.1]))

    References:
      L. Gu, W. Zhang, J. Liu, X.-C. Cai, ETNA 56 (2022) 157–186, composes by the mean. The other
      heads and the initialised off-diagonal blocks are ours.
    """
    if like is not None:
        params = Stacked(params, layout_of(like))
    _require_layouts(params)
    fill = _filling(off_diagonal, off_diagonal_scale, key, into)

    def node(stacked: Stacked, *into: PyTree) -> PyTree:
        head_weights = head_weights_of(head, weights, len(stacked))
        return _compose_node(stacked, into, head_weights, fill, weights is not None)

    nodes, structure = jax.tree.flatten(params, is_leaf=is_stacked)
    wide = [] if into is None else [_below(structure, into)]
    return structure.unflatten(map(node, nodes, *wide))


def extract(
    variables: PyTree,
    *,
    like: Layout | Stacked,
    head: Literal["mean", "sum"] = "mean",
    weights: Float[Array | np.ndarray, " K"] | None = None,
) -> Stacked:
    """Return the sub-networks in a global network: the inverse of `compose`.

    Every sub-network gets its diagonal blocks, the head's bias, and K times its part of the head's
    kernel, so `compose(extract(v, like=l))` is v with its off-diagonal blocks set to zero. A pure
    function of its arrays, which keeps dtypes.

    Args:
      variables: the global network's variables, or one collection of them.
      like: the layout of `variables`, or a `Stacked` that has it.
      head: how the head merges, as in `compose`; for a sum each sub-network gets its part unchanged
        and 1/K of the bias.
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
    head_weights = head_weights_of(head, weights, layout.subnets, positive=True)
    _check_kinds(check_shapes(variables, layout.global_shapes, "global network"), layout)

    return Stacked(_extract_tree(variables, head_weights, layout=layout), layout)


def layout_of(like: Layout | Stacked) -> Layout:
    """Return the layout that `like` is or has."""
    layout = like.layout if isinstance(like, Stacked) else like
    if isinstance(layout, Layout):
        return layout
    inside = "a Stacked whose layout is " if layout is not like else ""
    raise TypeError(f"like is a dcjax.Layout or a Stacked, got {inside}{shown(layout)}")


def _require_layouts(params: PyTree) -> None:
    nodes = leaves_of(params, "tree of parameters", is_leaf=is_stacked)
    plain = ["/".join(path) or "." for path, node in nodes.items() if not is_stacked(node)]
    if plain or not nodes:
        raise ValueError(
            "compose needs the layout, and these arrays do not have one: "
            f"{', '.join(plain[:5]) or '(an empty tree)'}{', …' if len(plain) > 5 else ''}. Pass "
            "what dcjax.init or dcjax.stack returned, or name the layout: "
            "dcjax.compose(params, like=dcjax.layout(network, K, x))"
        )
    for node in nodes.values():
        layout_of(node)


def _below(structure: Any, into: PyTree) -> list[PyTree]:
    """Return the subtree of `into` in the place of every `Stacked`."""
    try:
        return structure.flatten_up_to(into)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "into= must have the structure of params, with the global network's variables in the "
            f"place of each Stacked: {error}"
        ) from error


def _compose_node(
    stacked: Stacked,
    given: tuple[PyTree, ...],
    head_weights: Float[Array | np.ndarray, " K"],
    fill: Callable[[Path, tuple[int, ...], Any], Array] | None,
    weighted: bool,
) -> PyTree:
    """Compose one `Stacked`, into given variables if there are any."""
    layout = stacked.layout
    check_stack(stacked.tree, layout)

    into = None
    if given:
        found = check_shapes(given[0], layout.global_shapes, "global network (into=)")
        check_dtypes([stacked.tree, given[0]], ["the sub-networks", "into="])
        # The same paths may be in other containers, such as a FrozenDict.
        into = jax.tree_util.tree_map_with_path(lambda p, _: found[path_of(p)], stacked.tree)
    elif fill is not None:

        def filled(path: Any, leaf: Array) -> Array | None:
            own = path_of(path)
            has_them = layout.by_path[own].has_off_diagonal
            return fill(own, layout.global_shapes[own], leaf.dtype) if has_them else None

        into = jax.tree_util.tree_map_with_path(filled, stacked.tree)
    tree = without_diverged(stacked.tree, head_weights) if weighted else stacked.tree
    return _compose_tree(tree, into, head_weights, layout=layout)


# One program for all leaves: a call for each leaf would take longer than copying it.
@functools.partial(jax.jit, static_argnames="layout")
def _compose_tree(
    tree: PyTree, into: PyTree, head_weights: Float[Array | np.ndarray, " K"], *, layout: Layout
) -> PyTree:
    def at(path: Any, leaf: Array, old: Array | None) -> Array:
        rule = layout.by_path[path_of(path)]
        merge = _merge_weights(head_weights, rule)
        factors = head_weights if rule.head else None
        return compose_leaf(leaf, old, merge, factors, layout=rule, subnets=layout.subnets)

    if into is None:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: at(path, leaf, None), tree)
    return jax.tree_util.tree_map_with_path(at, tree, into)


@functools.partial(jax.jit, static_argnames="layout")
def _extract_tree(
    variables: PyTree, head_weights: Float[Array | np.ndarray, " K"], *, layout: Layout
) -> PyTree:
    def at(path: Any, leaf: Array) -> Array:
        rule = layout.by_path[path_of(path)]
        return extract_leaf(
            leaf, _merge_weights(head_weights, rule), layout=rule, subnets=layout.subnets
        )

    return jax.tree_util.tree_map_with_path(at, variables)


def _merge_weights(
    head_weights: Float[Array | np.ndarray, " K"], rule: LeafLayout
) -> Float[Array | np.ndarray, " K"]:
    """Return the weights that merge a leaf: plain means where the logits do not depend on it."""
    return head_weights if rule.used else jnp.full_like(head_weights, 1 / len(head_weights))


def _filling(
    off_diagonal: Literal["zeros"] | Initializer,
    scale: float,
    key: Key[Array, ""] | None,
    into: PyTree,
) -> Callable[[Path, tuple[int, ...], Any], Array] | None:
    """Return the function that fills off-diagonal entries, or None if they are zero."""
    if isinstance(off_diagonal, str):
        if off_diagonal != "zeros":
            raise ValueError(
                f'expected off_diagonal="zeros" or an initialiser, got {off_diagonal!r}; for '
                "example off_diagonal=jax.nn.initializers.he_normal(), key=jax.random.key(0)"
            )
        return None
    if not callable(off_diagonal):
        raise TypeError(
            "off_diagonal must be an initialiser (key, shape, dtype) -> array, such as "
            f"jax.nn.initializers.he_normal(), got {off_diagonal!r}"
        )
    if into is not None:
        raise ValueError("into= keeps the off-diagonal blocks it has: leave off_diagonal= out")
    if key is None:
        raise ValueError("an off-diagonal initialiser needs key=, such as jax.random.key(0)")
    check_key(key, "an off-diagonal initialiser draws from it")
    factor = array_of("off_diagonal_scale", scale)
    real = jnp.issubdtype(factor.dtype, jnp.floating) or jnp.issubdtype(factor.dtype, jnp.integer)
    if factor.shape or not real:
        raise TypeError(f"off_diagonal_scale must be a real number, got {shown(scale)}")

    def fill(path: Path, shape: tuple[int, ...], dtype: Any) -> Array:
        own = jax.random.fold_in(key, np.uint32(zlib.crc32("/".join(path).encode())))
        drawn = off_diagonal(own, shape, dtype)
        fits = hasattr(drawn, "dtype") and not array_fault(drawn) and drawn.shape == shape
        real = fits and (same_kind(drawn.dtype, dtype) or same_kind(drawn.dtype, int))
        if not real:
            raise ValueError(
                f"{'/'.join(path)}: the off-diagonal initialiser gave {shown(drawn)}, expected an "
                f"array of shape {shape} and dtype {dtype}; mind the call in "
                "jax.nn.initializers.he_normal()"
            )
        return (scale * drawn).astype(dtype)

    return fill


def check_stack(tree: PyTree, layout: Layout, *, abstract: bool = False) -> None:
    """Refuse a tree with leaves that are not stacks of K sub-networks' leaves; list them."""
    what = f"stack of {layout.subnets} sub-networks"
    _check_kinds(check_shapes(tree, layout.stack_shapes, what, abstract=abstract), layout)


def check_shapes(
    tree: PyTree, expected: Mapping[Path, tuple[int, ...]], what: str, *, abstract: bool = False
) -> dict[Path, Any]:
    """Return the leaves by their paths.

    Raises:
      ValueError: leaves are missing, unknown, of another shape, or not arrays; lists them all.
    """
    leaves, wrong = compare_leaves(tree, expected, what, abstract=abstract)
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
