"""Whole pytrees of arrays in one compiled program.

JAX compiles an operation on an array by itself once for each shape: tens of programs for a network,
each a fraction of a second on an accelerator.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

PyTree = Any


@jax.jit
def stack_trees(trees: Sequence[PyTree]) -> PyTree:
    """Trees of one structure, stacked along a new leading axis.

    >>> stack_trees([{"a": jnp.zeros(2)}, {"a": jnp.ones(2)}])["a"].shape
    (2, 2)
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def take_entries(tree: PyTree, index: int | Int[Array, " *n"]) -> PyTree:
    """One entry of every leaf's leading axis, or several; one program for all of them.

    >>> take_entries({"a": jnp.arange(6).reshape(3, 2)}, 2)
    {'a': Array([4, 5], dtype=int32)}
    """
    return jax.tree.map(lambda leaf: leaf[index], tree)


@functools.partial(jax.jit, static_argnames=("lead", "axes"))
def reshape_lead(tree: PyTree, lead: tuple[int, ...], axes: int) -> PyTree:
    """The first `axes` axes of every leaf as `lead`."""
    return jax.tree.map(lambda leaf: leaf.reshape(lead + leaf.shape[axes:]), tree)


@jax.jit
def copy_tree(tree: PyTree) -> PyTree:
    """The same in memory of its own."""
    return jax.tree.map(jnp.copy, tree)
