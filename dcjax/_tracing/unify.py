"""Orders with unknowns, and their unification.

The order of a layer's output channels is free until a later use decides it: a split, a fused qkv
reshape, a concatenation, groups, a residual sum. While the network is traced every axis is
therefore a *term*, and each use is an equation between terms, solved at once by binding unknowns in
place (as Prolog does), so that one pass over the network suffices and no restart is needed.

A term is a tuple of pieces that follow each other along the axis:

* `Fixed(n)`: n entries that all sub-networks share;
* `Units(leaf, each)`: `each` consecutive entries for every unit of `leaf`, which is `SUBNETS` (one
  unit for every sub-network, in their order) or an `Unknown`;
* `Repeat(times, term)`: the term again and again, as a flatten makes it.

A size is a pair (narrow, wide): entries in a sub-network's axis and in the global one.
"""

import dataclasses
import math
from typing import NamedTuple, TypeAlias

from dcjax._layout.order import Order, Run

# A ResNet takes a few hundred; without a limit, tangled shuffles can take forever.
_MOST_STEPS = 100_000


class Size(NamedTuple):
    """Entries of a sub-network's axis, and of the global network's."""

    narrow: int
    wide: int

    def __sub__(self, other: "Size") -> "Size":
        return Size(self.narrow - other.narrow, self.wide - other.wide)

    def times(self, factor: int) -> "Size":
        """The size of `factor` such axes in a row."""
        return Size(self.narrow * factor, self.wide * factor)

    def over(self, factor: int) -> "Size":
        """The size of a `factor`-th of the axis."""
        if self.narrow % factor or self.wide % factor:
            raise Conflict(f"{self} is not a multiple of {factor}")
        return Size(self.narrow // factor, self.wide // factor)

    @property
    def grows(self) -> bool:
        """Whether the global axis is longer than a sub-network's."""
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


@dataclasses.dataclass(eq=False)
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
    """The orders of one trace with K = `subnets` sub-networks."""

    def __init__(self, subnets: int):
        self.subnets = subnets
        self.steps = 0

    def fresh(self, size: Size) -> Term:
        """A new axis of a size: fixed if it does not grow, otherwise of unknown order."""
        if not size.grows:
            return (Fixed(size.narrow),) if size.narrow else ()
        shared, split = self._parts(size)
        if shared == 0 and split == 1:
            return (Units(SUBNETS, 1),)
        return (Units(Unknown(size), 1),)

    def unchecked(self, size: Size) -> Term:
        """An axis of any size, fitting K or not: to go on after a violation."""
        return (Units(Unknown(size), 1),) if size.grows else self.fresh(size)

    def _parts(self, size: Size) -> tuple[int, int]:
        """How many entries of an axis are shared, and how many each sub-network has of its own."""
        split, rest = divmod(size.wide - size.narrow, self.subnets - 1)
        if rest or not 0 <= split <= size.narrow:
            raise Conflict(
                f"an axis of {size.narrow} entries grows to {size.wide}, "
                f"expected {self.subnets} × {size.narrow} = {self.subnets * size.narrow}"
            )
        return size.narrow - split, split

    def size(self, term: Term) -> Size:
        """The entries of a term."""
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

    def is_shared(self, term: Term) -> bool:
        """Whether the axis does not grow."""
        return not self.size(term).grows

    def is_mixed(self, term: Term) -> bool:
        """Whether the axis has shared entries beside growing ones."""
        size = self.size(term)
        return size.grows and self._parts(size)[0] > 0

    def unify(self, left: Term, right: Term) -> None:
        """Make two orders the same by binding unknowns; `Conflict` where they cannot be."""
        if self.size(left) != self.size(right):
            raise Conflict(f"sizes {self.size(left)} and {self.size(right)} differ")
        a, b = list(reversed(left)), list(reversed(right))
        while a and b:
            self.steps += 1
            if self.steps > _MOST_STEPS:
                raise Conflict("too many equations to be solved")
            self._unify_heads(_pop(a), _pop(b), a, b)

    def _unify_heads(self, p: Piece, q: Piece, a: list[Piece], b: list[Piece]) -> None:
        """One step: make the first pieces equal, and put back what is left of the longer one."""
        np, nq = self._piece_size(p), self._piece_size(q)
        if np.narrow < nq.narrow or (np.narrow == nq.narrow and np.wide < nq.wide):
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
            case Units(Unknown() as v, each), _:
                first = nq.over(each)
                v.value = self.fresh(first) + self.fresh(v.size - first)
                a.append(p)
                b.append(q)
            case Repeat(), Repeat():
                self._unify_repeats(p, q, a, b)
            case Repeat(times, term), _:
                _push(a, (*term, Repeat(times - 1, term)))
                b.append(q)
            case (_, Repeat(times, term)):
                a.append(p)
                _push(b, (*term, Repeat(times - 1, term)))
            case (_, Units(Unknown() as v, each)):
                raise Conflict(f"{nq} entries against a block of {np}")
            case _:
                raise Conflict(f"{self.show((p,))} against {self.show((q,))}")

    def _bind(self, v: Unknown, each: int, piece: Piece) -> None:
        """Solve (v × each) = piece for v."""
        match piece:
            case Units(leaf, other) if leaf is v:
                pass  # equal sizes: the same piece
            case _ if _holds(piece, v):
                raise Conflict("the same channels in two orders")
            case Units(leaf, other) if other % each == 0:
                v.value = (Units(leaf, other // each),)
            case Units(Unknown() as w, other):
                common = math.lcm(each, other)
                finest = self.fresh(v.size.times(each).over(common))
                v.value = scale(finest, common // each)
                w.value = scale(finest, common // other)
            case Repeat(times, term):
                inner = self.fresh(self.size(term).over(each))
                v.value = (Repeat(times, inner),)
                self.unify(scale(inner, each), term)
            case _:
                raise Conflict(f"{self.show((piece,))} is not made of blocks of {each}")

    def _unify_repeats(self, p: Repeat, q: Repeat, a: list[Piece], b: list[Piece]) -> None:
        """Two repeats: compare whole periods where one is a multiple of the other, else unroll."""
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
            _push(a, (*p.term, Repeat(p.times - 1, p.term)))
            _push(b, (*q.term, Repeat(q.times - 1, q.term)))

    def settle(self, term: Term) -> Order:
        """The term as runs; what no use has decided becomes one block for each sub-network."""
        pieces = _resolve(term)
        if len(pieces) == 1 and isinstance(pieces[0], Repeat):
            inner = self.settle(pieces[0].term)
            return Order(inner.runs, repeat=inner.repeat * pieces[0].times)
        return Order(tuple(run for piece in pieces for run in self._runs(piece)))

    def _runs(self, piece: Piece) -> tuple[Run, ...]:
        match piece:
            case Fixed(n):
                return (Run(n, shared=True),)
            case Repeat(_, term):
                order = self.settle(term)
                return order.runs * (order.repeat * piece.times)
            case Units(Unknown() as v, each):
                shared, split = self._parts(v.size)
                v.value = (*((Fixed(shared),) if shared else ()), Units(SUBNETS, split))
                return tuple(run for p in scale(v.value, each) for run in self._runs(p))
            case Units(_, each):
                return (Run(each),)

    def show(self, term: Term) -> str:
        """A term in words, for messages; unknown parts as `?`."""
        return " + ".join(self._show(piece) for piece in _resolve(term))

    def _show(self, piece: Piece) -> str:
        match piece:
            case Fixed(n):
                return f"{n} shared"
            case Repeat(times, term):
                return f"{times}×({self.show(term)})"
            case Units(Unknown(size=size), each):
                return f"?{size}×{each}" if each > 1 else f"?{size}"
            case Units(_, each):
                return f"K×{each}"


def scale(term: Term, each: int) -> Term:
    """The axis followed by a fixed axis of `each`, flattened into one."""
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

    return tuple(scaled(piece) for piece in term)


def repeat(times: int, term: Term) -> Term:
    """A fixed axis of `times` followed by the axis, flattened into one."""
    if times == 1:
        return term
    if all(isinstance(piece, Fixed) for piece in term):
        return scale(term, times)
    return (Repeat(times, term),)


def _pop(pieces: list[Piece]) -> Piece:
    """The next piece, with what is known by now put in the place of unknowns."""
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


def _holds(piece: Piece, v: Unknown) -> bool:
    """Whether an unknown is in a piece."""
    match piece:
        case Repeat(_, term):
            return any(_holds(inner, v) for inner in _resolve(term))
        case Units(leaf, _):
            return leaf is v
        case _:
            return False


def _resolve(term: Term) -> Term:
    """The term with every bound unknown replaced."""
    pieces, out = list(reversed(term)), []
    while pieces:
        out.append(_pop(pieces))
    return tuple(out)
