"""Functions of whole pytrees, each one compiled program.

Leaf by leaf JAX would compile a program for every shape: tens of programs for a network, each a
fraction of a second on an accelerator.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree


@jax.jit
def stack_trees(trees: Sequence[PyTree]) -> PyTree:
    """Stack trees of one structure along a new leading axis.

    >>> stack_trees([{"a": jnp.zeros(2)}, {"a": jnp.ones(2)}])["a"].shape
    (2, 2)
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def take_entries(tree: PyTree, index: int | Int[Array, " *n"]) -> PyTree:
    """Take one entry, or several, of every leaf's leading axis.

    >>> take_entries({"a": jnp.arange(6).reshape(3, 2)}, 2)
    {'a': Array([4, 5], dtype=int32)}
    """
    return jax.tree.map(lambda leaf: leaf[index], tree)


@functools.partial(jax.jit, static_argnames=("lead", "axes"))
def reshape_lead(tree: PyTree, lead: tuple[int, ...], axes: int) -> PyTree:
    """Reshape the first `axes` axes of every leaf to `lead`."""
    return jax.tree.map(lambda leaf: leaf.reshape(lead + leaf.shape[axes:]), tree)


@jax.jit
def copy_tree(tree: PyTree) -> PyTree:
    """Copy every leaf to new memory."""
    return jax.tree.map(jnp.copy, tree)
