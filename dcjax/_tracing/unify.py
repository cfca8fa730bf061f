"""The unifier: orders with unknowns, and the equations between them.

The order of a layer's output channels is free until a later use decides it: a split, a fused qkv
reshape, a concatenation, groups, a residual sum. While the network is traced every axis is
therefore a *term*, and each use is an equation between terms. It is solved at once by binding
unknowns in place (as Prolog does), so that one pass over the network suffices.

A term is a tuple of pieces that follow each other along the axis:

* `Fixed(n)`: n entries that all sub-networks share;
* `Units(leaf, each)`: `each` consecutive entries for every unit of `leaf`, which is `SUBNETS` (one
  unit for every sub-network, in their order) or an `Unknown`;
* `Repeat(times, term)`: the term again and again, as a flatten makes it.
"""

import dataclasses
import math
from typing import NamedTuple, TypeAlias

from dcjax._layout.order import Order, Run

# A ResNet takes a few hundred; without a limit, tangled shuffles can take forever.
_MOST_STEPS = 100_000


class Size(NamedTuple):
    """The number of entries of a sub-network's axis, and of the global network's."""

    narrow: int
    wide: int

    def __sub__(self, other: "Size") -> "Size":
        return Size(self.narrow - other.narrow, self.wide - other.wide)

    def times(self, factor: int) -> "Size":
        """Return the size of `factor` such axes in a row."""
        return Size(self.narrow * factor, self.wide * factor)

    def over(self, factor: int) -> "Size":
        """Return the size of a `factor`-th of the axis."""
        if self.narrow % factor or self.wide % factor:
            raise Conflict(f"{self} is not a multiple of {factor}")
        return Size(self.narrow // factor, self.wide // factor)

    @property
    def grows(self) -> bool:
        """True if the global axis is longer than a sub-network's."""
        return self.narrow != self.wide

    def __str__(self) -> str:
        return f"{self.narrow}→{self.wide}" if self.grows else str(self.narrow)


class Conflict(Exception):
    """Two orders cannot be the same."""


@dataclasses.dataclass(eq=False)
class Unknown:
    """An order that no use has decided yet; `value` once one has."""

    size: Size
    value: "Term | None" = None


class _Subnets:
    """The axis that has one unit for each sub-network."""


SUBNETS = _Subnets()


class Fixed(NamedTuple):
    """Entries that all sub-networks share."""

    entries: int


class Units(NamedTuple):
    """`each` consecutive entries for every unit of `leaf`."""

    leaf: Unknown | _Subnets
    each: int


class Repeat(NamedTuple):
    """The term `times` times in a row."""

    times: int
    term: "Term"


Piece: TypeAlias = Fixed | Units | Repeat
Term: TypeAlias = tuple[Piece, ...]


class Orders:
    """The unifier of one walk, for K = `subnets` sub-networks."""

    def __init__(self, subnets: int):
        self.subnets = subnets
        self.steps = 0

    def fresh(self, size: Size) -> Term:
        """Return a new axis: fixed if it does not grow, otherwise of unknown order."""
        if not size.grows:
            return (Fixed(size.narrow),) if size.narrow else ()
        return (Units(SUBNETS if self._parts(size) == (0, 1) else Unknown(size), 1),)

    def unchecked(self, size: Size) -> Term:
        """Return a new axis even if K sub-networks cannot have it: to go on after a violation."""
        return (Units(Unknown(size), 1),) if size.grows else self.fresh(size)

    def _parts(self, size: Size) -> tuple[int, int]:
        """Return how many entries of an axis are shared, and how many are split."""
        split, rest = divmod(size.wide - size.narrow, self.subnets - 1)
        if rest or not 0 <= split <= size.narrow:
            raise Conflict(
                f"an axis of {size.narrow} entries grows to {size.wide}, "
                f"expected {self.subnets} × {size.narrow} = {self.subnets * size.narrow}"
            )
        return size.narrow - split, split

    def size(self, term: Term) -> Size:
        """Return the number of entries of a term."""
        sizes = [self._piece_size(piece) for piece in term]
        return Size(sum(s.narrow for s in sizes), sum(s.wide for s in sizes))

    def _piece_size(self, piece: Piece) -> Size:
        match piece:
            case Fixed(n):
                return Size(n, n)
            case Repeat(times, term):
                return self.size(term).times(times)
            case Units(Unknown(size=size), each):
                return size.times(each)
            case Units(_, each):
                return Size(each, self.subnets * each)

    def is_mixed(self, term: Term) -> bool:
        """Return whether the axis has shared entries beside split ones."""
        size = self.size(term)
        return size.grows and self._parts(size)[0] > 0

    def unify(self, left: Term, right: Term) -> None:
        """Make two orders the same by binding unknowns; `Conflict` if they cannot be."""
        if self.size(left) != self.size(right):
            raise Conflict(f"sizes {self.size(left)} and {self.size(right)} differ")
        a, b = list(reversed(left)), list(reversed(right))
        while a and b:
            self.steps += 1
            if self.steps > _MOST_STEPS:
                raise Conflict("too many equations to be solved")
            self._unify_first(_pop(a), _pop(b), a, b)

    def _unify_first(self, p: Piece, q: Piece, a: list[Piece], b: list[Piece]) -> None:
        """Make the first pieces equal, and put back the rest of the longer one."""
        np, nq = self._piece_size(p), self._piece_size(q)
        if np < nq:
            p, q, a, b, np, nq = q, p, b, a, nq, np
        match p, q:
            case _ if p == q:
                pass
            case Fixed(n), Fixed(m):
                _push(a, (Fixed(n - m),))
            case (Units(Unknown() as v, each), _) if np == nq:
                self._bind(v, each, q)
            case (_, Units(Unknown() as v, each)) if np == nq:
                self._bind(v, each, p)
            case Units(Unknown() as v, each), _:  # q is the beginning of v: cut v in two
                first = nq.over(each)
                v.value = self.fresh(first) + self.fresh(v.size - first)
                a.append(p)
                b.append(q)
            case Repeat(), Repeat():
                self._unify_repeats(p, q, a, b)
            case Repeat(), _:
                _push(a, _unrolled(p))
                b.append(q)
            case _, Repeat():
                a.append(p)
                _push(b, _unrolled(q))
            case _:
                raise Conflict(f"{self.settle((p,))} against {self.settle((q,))}")

    def _bind(self, v: Unknown, each: int, piece: Piece) -> None:
        """Solve (v × each) = piece for v."""
        match piece:
            case Units(leaf, other) if leaf is v:
                pass  # equal sizes: the same piece
            case _ if _holds((piece,), v):
                raise Conflict("the same channels in two orders")
            case Units(leaf, other) if other % each == 0:
                v.value = (Units(leaf, other // each),)
            case Units(Unknown() as w, other):  # both are made of blocks of the common multiple
                common = math.lcm(each, other)
                finest = self.fresh(v.size.times(each).over(common))
                v.value = scale(finest, common // each)
                w.value = scale(finest, common // other)
            case Repeat(times, term):
                inner = self.fresh(self.size(term).over(each))
                v.value = (Repeat(times, inner),)
                self.unify(scale(inner, each), term)
            case _:
                raise Conflict(f"{self.settle((piece,))} is not made of blocks of {each}")

    def _unify_repeats(self, p: Repeat, q: Repeat, a: list[Piece], b: list[Piece]) -> None:
        """Compare whole periods if one is a multiple of the other, otherwise one entry of each."""
        np, nq = self.size(p.term), self.size(q.term)
        if np.narrow < nq.narrow:
            p, q, a, b, np, nq = q, p, b, a, nq, np
        ratio = np.narrow // nq.narrow
        if nq.times(ratio) == np and q.times >= ratio:
            count = min(p.times, q.times // ratio)
            self.unify(p.term, (Repeat(ratio, q.term),) if ratio > 1 else q.term)
            _push(a, (Repeat(p.times - count, p.term),))
            _push(b, (Repeat(q.times - count * ratio, q.term),))
        else:
            _push(a, _unrolled(p))
            _push(b, _unrolled(q))

    def settle(self, term: Term) -> Order:
        """Return the term as runs; undecided orders become one block for each sub-network."""
        pieces = _resolve(term)
        runs: list[Run] = []
        for piece in pieces:
            match piece:
                case Fixed(n):
                    runs.append(Run(n, shared=True))
                case Repeat(times, inner):
                    order = self.settle(inner)
                    if len(pieces) == 1:  # a flatten of many pixels: their runs are not written out
                        return Order(order.runs, order.repeat * times)
                    runs += order.runs * (order.repeat * times)
                case Units(Unknown(size=size), each):
                    shared, split = self._parts(size)
                    runs += Run(shared * each, shared=True), Run(split * each)
                case Units(_, each):
                    runs.append(Run(each))
        return Order(tuple(runs))


def scale(term: Term, each: int) -> Term:
    """Return the axis followed by a fixed axis of `each`, flattened into one."""
    if each == 1:
        return term

    def scaled(piece: Piece) -> Piece:
        match piece:
            case Fixed(n):
                return Fixed(n * each)
            case Units(leaf, other):
                return Units(leaf, other * each)
            case Repeat(times, inner):
                return Repeat(times, scale(inner, each))

    return tuple(map(scaled, term))


def repeat(times: int, term: Term) -> Term:
    """Return a fixed axis of `times` followed by the axis, flattened into one."""
    if times == 1:
        return term
    if all(isinstance(piece, Fixed) for piece in term):
        return scale(term, times)
    return (Repeat(times, term),)


def _unrolled(piece: Repeat) -> Term:
    return (*piece.term, Repeat(piece.times - 1, piece.term))


def _pop(pieces: list[Piece]) -> Piece:
    """Take the next piece, replacing bound unknowns."""
    piece = pieces.pop()
    while isinstance(piece, Units) and isinstance(piece.leaf, Unknown) and piece.leaf.value:
        _push(pieces, scale(piece.leaf.value, piece.each))
        piece = pieces.pop()
    return piece


def _push(pieces: list[Piece], term: Term) -> None:
    """Put a term back in front, leaving out its empty pieces."""
    for piece in reversed(term):
        match piece:
            case Fixed(0) | Repeat(0, _):
                pass
            case Repeat(1, inner):
                _push(pieces, inner)
            case _:
                pieces.append(piece)


def _holds(term: Term, v: Unknown) -> bool:
    pieces = _resolve(term)
    inner = any(_holds(piece.term, v) for piece in pieces if isinstance(piece, Repeat))
    return inner or any(piece.leaf is v for piece in pieces if isinstance(piece, Units))


def _resolve(term: Term) -> Term:
    """Return the term with every bound unknown replaced."""
    pieces, out = list(reversed(term)), []
    while pieces:
        out.append(_pop(pieces))
    return tuple(out)
