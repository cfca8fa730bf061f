"""K sub-networks' variables as one pytree: leaves with a leading axis K, and the layout."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from dcjax._layout.layout import Layout
from dcjax._pytrees import take_entries


@jax.tree_util.register_pytree_with_keys_class
class Stacked:
    """The variables of K sub-networks, stacked, with the layout as static data.

    `dcjax.init` and `dcjax.stack` make it. Every array leaf has the leading axis K. It is a pytree:
    `jax.tree.map`, `jit`, `pmap`, `grad` and optax take it and return a `Stacked` with the same
    layout, which `dcjax.compose` reads.

    * `stacked[2]` (an int): the plain variables of sub-network 2; `IndexError` beyond K.
    * `stacked["params"]` (a str): one collection, still stacked.
    * `stacked.tree`: the pytree without the layout, for functions of plain variables (`jax.vmap`
      over its leading axis); `dcjax.compose(tree, like=stacked)` takes it back.
    * `len(stacked)` is K; iteration gives the K sub-networks' variables.
    """

    __slots__ = ("layout", "tree")

    def __init__(self, tree: PyTree, layout: Layout):
        # Not validated: inside pmap and in JAX's tree functions leaves are not stacked arrays.
        self.tree = tree
        self.layout = layout

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            if key not in self.tree:
                raise KeyError(f"{key!r}; the collections here are {sorted(self.tree)}")
            return Stacked(self.tree[key], self.layout[key])
        subnets = len(self)
        if not isinstance(key, int):
            raise TypeError(
                "index a Stacked by a sub-network's number (int) or a collection (str); "
                f"got {type(key).__name__}"
            )
        if not -subnets <= key < subnets:
            raise IndexError(f"sub-network {key} of {subnets}: valid are 0 to {subnets - 1}")
        if not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(self.tree)):
            return jax.tree.map(lambda leaf: leaf[key % subnets], self.tree)  # NumPy's stay that
        return take_entries(self.tree, key % subnets)

    def __getattr__(self, name: str) -> Any:  # Python calls it for missing attributes only
        raise AttributeError(
            f"a Stacked has no {name!r}: it holds K sub-networks' variables. Take stacked[k] for "
            "one sub-network's, or stacked.tree for the pytree with the leading axis K"
        )

    def __len__(self) -> int:
        return self.layout.subnets

    def __iter__(self) -> Iterator[PyTree]:
        return (self[k] for k in range(len(self)))

    def __contains__(self, name: object) -> bool:
        return isinstance(self.tree, Mapping) and name in self.tree

    def __repr__(self) -> str:
        shapes = jax.tree.map(lambda leaf: getattr(leaf, "shape", leaf), self.tree)
        return f"Stacked({getattr(self.layout, 'subnets', '?')} sub-networks, {shapes})"

    def _repr_html_(self) -> str:
        return f"<div>Variables of {len(self)} sub-networks{self.layout._repr_html_()}</div>"

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, PyTree]], Layout]:
        """Return one child, the tree; the layout is static."""
        return ((jax.tree_util.GetAttrKey("tree"), self.tree),), self.layout

    def tree_flatten(self) -> tuple[tuple[PyTree], Layout]:
        """Return the same without keys."""
        return (self.tree,), self.layout

    @classmethod
    def tree_unflatten(cls, layout: Layout, children: tuple[PyTree]) -> "Stacked":
        """Invert `tree_flatten`, without looking at the children."""
        return cls(children[0], layout)


def is_stacked(node: Any) -> bool:
    """Tell whether a node is a `Stacked`, for `is_leaf=`."""
    return isinstance(node, Stacked)
