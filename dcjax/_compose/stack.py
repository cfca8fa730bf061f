"""Stack K separate trees of variables; unstack them again."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dcjax._checks import array_fault, leaves_of, shown
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
    trees = _sequence(variables, layout.subnets)
    if len(trees) != layout.subnets:
        more = len(trees) > layout.subnets
        raise ValueError(
            f"the layout is for {layout.subnets} sub-networks, got "
            f"{'more' if more else len(trees)} trees"
        )
    _check_trees(trees, layout)
    check_dtypes(trees, [f"sub-network {k}" for k in range(len(trees))])
    _check_structures(trees)
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
        wrong += [f"{'/'.join(path)} {fault}"] if fault else []
    if wrong:
        raise ValueError(
            f"these leaves are not stacks of {subnets} sub-networks' arrays:\n  "
            + "\n  ".join(wrong)
        )


def _sequence(variables: Any, subnets: int) -> list[PyTree]:
    """Return the trees of any iterable, at most one too many."""
    scalar = (
        hasattr(variables, "shape") and not variables.shape
    )  # its type has __iter__, but iterating raises
    not_trees = scalar or isinstance(variables, (str, bytes, Mapping))
    if not_trees or not isinstance(variables, Iterable):
        raise TypeError(
            f"expected a sequence of {subnets} sub-networks' variables, such as [v0, v1, …], got "
            f"{shown(variables)}"
        )
    return list(itertools.islice(variables, subnets + 1))


def _check_structures(trees: Sequence[PyTree]) -> None:
    """Refuse trees with the same paths in different containers."""
    first = jax.tree.structure(trees[0])
    for k, tree in enumerate(trees):
        if jax.tree.structure(tree) != first:
            raise ValueError(
                f"sub-network {k} has the same leaves as sub-network 0 in other containers: "
                f"expected {_abridged(first)}, got {_abridged(jax.tree.structure(tree))}. Bring "
                "all to one kind, with flax.core.unfreeze or jax.tree.unflatten"
            )


def _abridged(structure: Any) -> str:
    text = str(structure)
    return text if len(text) < 200 else f"{text[:200]}…"


def _check_trees(variables: Sequence[PyTree], layout: Layout) -> None:
    expected = {path: leaf.narrow_shape for path, leaf in layout.leaves}
    wrong: list[str] = []
    for k, tree in enumerate(variables):
        leaves = leaves_of(tree, f"tree of sub-network {k}")
        faults = {path: array_fault(leaf) for path, leaf in leaves.items()}
        wrong += [f"sub-network {k}: {'/'.join(p)} {fault}" for p, fault in faults.items() if fault]
        got = {path: jnp.shape(leaf) for path, leaf in leaves.items() if not faults[path]}
        wrong += [f"sub-network {k} has no {'/'.join(p)}" for p in expected if p not in leaves]
        wrong += [
            f"sub-network {k} has an extra {'/'.join(p)}" for p in leaves if p not in expected
        ]
        wrong += [
            f"sub-network {k}: {'/'.join(p)} has shape {got[p]}, expected {shape}"
            for p, shape in expected.items()
            if p in got and got[p] != shape
        ]
    if wrong:
        raise ValueError("these trees do not fit the layout:\n  " + "\n  ".join(wrong))
