"""The layout: for every axis of every leaf, where each sub-network's entries stand globally."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from dcjax._layout.html import layout_html
from dcjax._layout.order import Order

Path = tuple[str, ...]
_NO_HEAD = "no head (1/K) among these leaves: without one, outputs are concatenated (K × C)"


@dataclasses.dataclass(frozen=True)
class LeafLayout:
    """How one leaf of the global network is made of K sub-networks' leaves.

    * An axis with split runs grows K-fold; entries whose split axes belong to different
      sub-networks (the off-diagonal blocks) are zero after composition.
    * A leaf without any split axis, such as the head's bias, is common to all: composition takes
      its mean.
    * `head` marks a kernel that merges the sub-networks: its blocks are divided by K, so that the
      global logits are the mean of the sub-networks' logits.
    * `used` is False for a leaf that the traced calls do not use (random counters). It is composed
      by its shape alone: side by side if it grows, otherwise the mean, or sub-network 0's value of
      what has no mean (integers, keys).
    * `factor` multiplies the global entries: it makes up for a number that depends on the width,
      by which the network multiplies what it computes with this leaf.
    """

    axes: tuple[Order, ...]
    head: bool = False
    used: bool = True
    factor: float = 1.0

    @property
    def is_mean(self) -> bool:
        """True if the leaf does not grow: composition takes the mean over the sub-networks."""
        return all(order.is_shared for order in self.axes)

    @property
    def has_shared(self) -> bool:
        """True if some entries of the global leaf are common to all sub-networks."""
        return all(any(run.shared for run in order.runs) for order in self.axes)

    @property
    def has_off_diagonal(self) -> bool:
        """True if some entries of the global leaf connect different sub-networks."""
        return sum(not order.is_shared for order in self.axes) > 1

    @property
    def narrow_shape(self) -> tuple[int, ...]:
        """The shape of a sub-network's leaf."""
        return tuple(order.narrow for order in self.axes)

    def global_shape(self, subnets: int) -> tuple[int, ...]:
        """Return the shape of the global leaf."""
        return tuple(order.width(subnets) for order in self.axes)

    @property
    def kind(self) -> str:
        """How composition makes the leaf, in one word; see `Layout`."""
        kind = "mean" if self.is_mean else "1/K" if self.head else "block"
        return kind if self.used else "unused"

    def __str__(self) -> str:
        axes = " , ".join(map(str, self.axes)) or "scalar"
        factor = f"  (times {self.factor:.4g})" if self.factor != 1 else ""
        return f"{self.kind:6} {axes}{factor}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layouts of all leaves of a network's variables, for `subnets` = K sub-networks.

    Static and hashable. `layout["params"]` is the part below one key; `print(layout)` is a table:
    path, shape in a sub-network, shape in the global network, kind (`block`: block-diagonal or
    concatenated; `1/K`: concatenated and divided by K; `mean`; `unused`: not used by the calls
    that were traced), and the runs of every axis. Without a head, a last line says so.
    """

    subnets: int
    leaves: tuple[tuple[Path, LeafLayout], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", tuple(sorted(self.leaves, key=lambda leaf: leaf[0])))

    @functools.cached_property
    def by_path(self) -> dict[Path, LeafLayout]:
        """The leaves' layouts by their paths."""
        return dict(self.leaves)

    @functools.cached_property
    def stack_shapes(self) -> dict[Path, tuple[int, ...]]:
        """The leaves' shapes in a stack of sub-networks: K first."""
        return {path: (self.subnets, *leaf.narrow_shape) for path, leaf in self.leaves}

    @functools.cached_property
    def global_shapes(self) -> dict[Path, tuple[int, ...]]:
        """The leaves' shapes in the global network."""
        return {path: leaf.global_shape(self.subnets) for path, leaf in self.leaves}

    @property
    def has_head(self) -> bool:
        """True unless leaves grow and none of them merges the sub-networks (kind `1/K`).

        Without a head the composed network's output is the sub-networks' outputs side by side.

        >>> from dcjax._layout.order import Run
        >>> whole, channels = Order((Run(3, shared=True),)), Order((Run(2),))
        >>> stem, head = LeafLayout((whole, channels)), LeafLayout((channels, whole), head=True)
        >>> Layout(4, ((("stem",), stem), (("head",), head))).has_head
        True
        >>> Layout(4, ((("stem",), stem),)).has_head
        False
        """
        leaves = [leaf for _, leaf in self.leaves]
        return any(leaf.head for leaf in leaves) or all(leaf.is_mean for leaf in leaves)

    def __getitem__(self, key: str) -> "Layout":
        below = tuple((path[1:], leaf) for path, leaf in self.leaves if path[:1] == (key,))
        if not below:
            names = sorted({path[0] for path, _ in self.leaves if path})
            raise KeyError(f"{key!r}; this layout's top level has {names}")
        return Layout(self.subnets, below)

    # Layouts are static data of jitted functions, which hash them at each call.
    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.subnets, self.leaves))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        rows = [("leaf", "sub-network", "global", f"kind   axes (K = {self.subnets})")]
        for path, leaf in self.leaves:
            wide = leaf.global_shape(self.subnets)
            rows.append(("/".join(path), str(leaf.narrow_shape), str(wide), str(leaf)))
        return table(rows) + ("" if self.has_head else f"\n{_NO_HEAD}")

    def _repr_html_(self) -> str:
        leaves = [("/".join(path), leaf.kind, leaf.axes) for path, leaf in self.leaves]
        return layout_html(leaves, self.subnets, "" if self.has_head else _NO_HEAD)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text, one a line, with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


# The same paths come with every call, and making the strings would take longer than composing.
@functools.lru_cache(maxsize=2**16)
def path_of(keys: tuple[Any, ...]) -> Path:
    """Return JAX's keys of a leaf as plain strings."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)
