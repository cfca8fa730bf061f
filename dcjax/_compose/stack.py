"""Stack K separate trees of variables; unstack them again."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from dcjax._checks import array_fault, compare_leaves, leaves_of, path_name, raise_listed, shown
from dcjax._compose.compose import check_dtypes, layout_of
from dcjax._compose.stacked import Stacked
from dcjax._layout.layout import Layout
from dcjax._pytrees import stack_trees


def stack(variables: Iterable[PyTree], *, like: Layout | Stacked) -> Stacked:
    """Stack K separately trained sub-networks' variables into one tree.

    Args:
      variables: K pytrees of one structure, sub-network 0's first.
      like: the layout of their network, or a `Stacked` that has it.

    Returns:
      A `Stacked`, every leaf with the leading axis K.

    Raises:
      ValueError: not K trees, or structures, shapes or dtypes disagree; lists every disagreement.
      TypeError: `variables` is not a sequence of trees, or `like` not a layout.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> again = dcjax.stack(dcjax.unstack(stacked), like=stacked)
    >>> bool(jax.tree.all(jax.tree.map(jax.numpy.array_equal, again, stacked)))
    True
    """
    layout = layout_of(like)
    trees = list(variables)
    if len(trees) != layout.subnets:
        raise ValueError(f"the layout is for {layout.subnets} sub-networks, got {len(trees)} trees")
    names = [f"sub-network {k}" for k in range(len(trees))]
    expected = {path: leaf.narrow_shape for path, leaf in layout.leaves}
    wrong: list[str] = []
    for name, tree in zip(names, trees, strict=True):
        wrong += [
            f"{name}: {line}" for line in compare_leaves(tree, expected, f"tree of {name}")[1]
        ]
    raise_listed("these trees do not fit the layout:", wrong)
    check_dtypes(trees, names)
    return Stacked(stack_trees(trees), layout)


def unstack(stacked: Stacked) -> list[PyTree]:
    """Return the list of the K sub-networks' variables, each a plain pytree.

    Raises:
      TypeError: `stacked` is not a `Stacked`.
      ValueError: a leaf has another leading axis than K; lists every such leaf.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> len(dcjax.unstack(stacked))
    4
    """
    check_stacked(stacked)
    return list(stacked)


def check_stacked(stacked: Any) -> None:
    """Refuse anything but a `Stacked` of arrays with the leading axis K."""
    if not isinstance(stacked, Stacked):
        raise TypeError(
            "expected a dcjax.Stacked, such as dcjax.init and dcjax.stack return, got "
            f"{shown(stacked)}"
        )
    subnets = layout_of(stacked).subnets
    wrong = []
    for path, leaf in leaves_of(stacked.tree, "stacked tree").items():
        fault = array_fault(leaf)
        if not fault and jnp.shape(leaf)[:1] != (subnets,):
            fault = f"has shape {jnp.shape(leaf)}, expected ({subnets}, …)"
        wrong += [f"{path_name(path)} {fault}"] if fault else []
    raise_listed(f"these leaves are not stacks of {subnets} sub-networks' arrays:", wrong)
