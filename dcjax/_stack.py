"""Between K separate trees of variables and one stacked tree."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dcjax._compose import check_dtypes, layout_of
from dcjax._layout import Layout, path_of
from dcjax._stacked import Stacked

PyTree = Any


def stack(variables: Sequence[PyTree], *, like: Layout | Stacked) -> Stacked:
    """One stacked tree of K separately trained sub-networks' variables.

    Args:
      variables: K pytrees of one structure, sub-network 0's first.
      like: the layout of the network they belong to, or a `Stacked` that has it.

    Returns:
      A `Stacked`, every leaf with the leading axis K.

    Raises:
      ValueError: not K trees, or structures, shapes or dtypes disagree; lists every disagreement.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> again = dcjax.stack(dcjax.unstack(stacked), like=stacked)
    >>> bool(jax.tree.all(jax.tree.map(jax.numpy.array_equal, again, stacked)))
    True
    """
    layout = layout_of(like)
    if len(variables) != layout.subnets:
        raise ValueError(
            f"the layout is for {layout.subnets} sub-networks, got {len(variables)} trees"
        )
    _check_trees(variables, layout)
    check_dtypes(list(variables), [f"sub-network {k}" for k in range(len(variables))])
    return Stacked(jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables), layout)


def unstack(stacked: Stacked) -> list[PyTree]:
    """The list of the K sub-networks' variables, each a plain pytree.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> len(dcjax.unstack(stacked))
    4
    """
    return list(stacked)


def _check_trees(variables: Sequence[PyTree], layout: Layout) -> None:
    expected = {path: leaf.narrow_shape for path, leaf in layout.leaves}
    wrong: list[str] = []
    for k, tree in enumerate(variables):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        got = {path_of(path): jnp.shape(leaf) for path, leaf in leaves}
        wrong += [f"sub-network {k} has no {'/'.join(p)}" for p in expected if p not in got]
        wrong += [f"sub-network {k} has an extra {'/'.join(p)}" for p in got if p not in expected]
        wrong += [
            f"sub-network {k}: {'/'.join(p)} has shape {got[p]}, expected {shape}"
            for p, shape in expected.items()
            if p in got and got[p] != shape
        ]
    if wrong:
        raise ValueError("these trees do not fit the layout:\n  " + "\n  ".join(wrong))
