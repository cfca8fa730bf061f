"""Broadcasts that JAX leaves out of a sub-network, because they change nothing there.

A mask (N, 1, T, T) is broadcast to all heads. The jaxpr of a sub-network with one head lacks this
equation of the global network's, and gets it here.
"""

from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex


def with_broadcasts(narrow: Any, wide: Any) -> Any:
    """Return a sub-network's jaxpr with the broadcasts that only the global network's has.

    From the first other difference on it stays as it is: `misaligned` tells of that difference.
    """
    own, other = (getattr(program, "jaxpr", program) for program in (narrow, wide))
    twins = dict(
        zip((*other.invars, *other.constvars), (*own.invars, *own.constvars), strict=False)
    )
    sources: dict[Any, Any] = {}  # the array that an added broadcast takes, by its result

    def rewired(narrow_vars: Sequence[Any], wide_vars: Sequence[Any]) -> list[Any]:
        found = [None if isinstance(w, jex.Literal) else twins.get(w) for w in wide_vars]
        pairs = zip(narrow_vars, found, strict=False)
        return [twin if twin in sources and sources[twin] is n else n for n, twin in pairs]

    rest, eqns = list(reversed(own.eqns)), []
    for eqn in other.eqns:
        mine = rest[-1] if rest and _are_alike(rest[-1], eqn) else None
        source = twins.get(eqn.invars[0]) if _keeps_rank(eqn) else None
        if source is not None and not (mine and mine.invars[0] is source):
            added, shape = jex.Var(source.aval), {"shape": source.aval.shape}
            eqns.append(eqn.replace(invars=[source], outvars=[added], params=eqn.params | shape))
            twins[eqn.outvars[0]], sources[added] = added, sources.get(source, source)
        elif mine:
            params = {k: _nested(v, eqn.params.get(k)) for k, v in mine.params.items()}
            invars = rewired(mine.invars, eqn.invars)
            same = all(map(_is, (*invars, *params.values()), (*mine.invars, *mine.params.values())))
            eqns.append(mine if same else mine.replace(invars=invars, params=params))
            twins.update(zip(eqn.outvars, mine.outvars, strict=True))
            rest.pop()
        else:
            break
    eqns += reversed(rest)
    if all(map(_is, eqns, own.eqns)) and len(eqns) == len(own.eqns):
        return narrow
    outvars = own.outvars if rest else rewired(own.outvars, other.outvars)
    changed = own.replace(eqns=eqns, outvars=outvars)
    return changed if own is narrow else narrow.replace(jaxpr=changed)


def _is(a: Any, b: Any) -> bool:
    return a is b


def _are_alike(narrow: Any, wide: Any) -> bool:
    """Return whether two equations do the same to equally many arrays."""
    counts = [(len(eqn.invars), len(eqn.outvars)) for eqn in (narrow, wide)]
    return narrow.primitive.name == wide.primitive.name and counts[0] == counts[1]


def _keeps_rank(eqn: Any) -> bool:
    """Return whether an equation broadcasts an array to others of its own rank."""
    if eqn.primitive.name != "broadcast_in_dim" or isinstance(eqn.invars[0], jex.Literal):
        return False
    return len(eqn.invars[0].aval.shape) == len(eqn.outvars[0].aval.shape)


def _nested(narrow: Any, wide: Any) -> Any:
    """Return a parameter with the broadcasts in the jaxprs that it holds."""
    if isinstance(narrow, (jex.ClosedJaxpr, jex.Jaxpr)) and type(narrow) is type(wide):
        return with_broadcasts(narrow, wide)
    if isinstance(narrow, tuple) and isinstance(wide, tuple) and len(narrow) == len(wide):
        parts = tuple(map(_nested, narrow, wide))
        return narrow if all(map(_is, parts, narrow)) else parts
    return narrow
