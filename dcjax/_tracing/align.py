"""Do two jaxprs agree in everything but sizes? Networks that differ in width alone do."""

import enum
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from dcjax._tracing.errors import Inseparable
from dcjax._tracing.unify import Size
from dcjax._tracing.value import Equation

_CLOSES, _RETURNS = "closes over", "returns"  # the first and the last step, not equations
_TWO_HEADS = (
    "; JAX leaves out an axis of one entry, such as that of one head: give each sub-network two "
    "or more, or write jnp.einsum instead of `@`"
)
_HINTS = {
    _CLOSES: ", and make a new array for each use",
    "dot_general": ", and the order of an einsum's products on nothing (optimize=…)",
    "squeeze": _TWO_HEADS,
    "broadcast_in_dim": _TWO_HEADS,
}
_SAME_BUT_SIZES = "let nothing but sizes depend on the width"


class Misaligned(NamedTuple):
    """A step that two jaxprs do not share: its source (None: no equation), and what is wrong."""

    source: Any
    problem: str
    remedy: str


def misaligned(narrow: jex.Jaxpr, wide: jex.Jaxpr) -> Misaligned | None:
    """Return the first step that two jaxprs do not share, or that has other operands."""
    for (name, source, arrays), (wide_name, wide_source, wide_arrays) in zip(
        _steps(narrow), _steps(wide), strict=False
    ):
        if name != wide_name:
            names = ["nothing" if n == _RETURNS else f"`{n}`" for n in (name, wide_name)]
            problem = (
                f"the networks do other things here: {names[0]} in a sub-network, {names[1]} in "
                "the global network"
            )
        elif arrays != wide_arrays:
            what = f"it {name}" if name in (_CLOSES, _RETURNS) else f"`{name}` takes"
            problem = f"{what} other arrays in the global network than in a sub-network"
        else:
            continue
        remedy = _SAME_BUT_SIZES + _HINTS.get(name, "")
        return Misaligned(source or wide_source, problem, remedy)
    return None


def _steps(jaxpr: jex.Jaxpr) -> Iterator[tuple[str, Any, list[Any]]]:
    """Iterate over the operations, with their sources, and their arrays without sizes.

    An operand is the number of an earlier array, or None for a literal.
    """
    numbers: dict[Any, int] = {}

    def arrays(operands: Sequence[Any], results: Sequence[Any]) -> list[Any]:
        taken = [None if isinstance(v, jex.Literal) else numbers[v] for v in operands]
        for var in results:
            numbers[var] = len(numbers)
        return [taken, [len(_shape(v)) for v in (*operands, *results)]]

    yield _CLOSES, None, arrays((), (*jaxpr.invars, *jaxpr.constvars))
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, eqn.source_info, arrays(eqn.invars, eqn.outvars)
    yield _RETURNS, None, arrays(jaxpr.outvars, ())


# Parameters that are sizes or positions, which the rules compare where they must, and a label.
_SIZES = ("k", "feature_group_count", "shape", "new_sizes", "sizes", "slice_sizes")
_SIZES += ("padding_config", "start_indices", "limit_indices", "reps", "name", "fft_lengths")
_COMPARED = ("impl", "fill_value", "branches_platforms")  # of any type
_PLAIN = (bool, str, int, float, complex, type(None), enum.Enum, np.dtype, np.generic)


def refuse_differences(equation: Equation, narrow: Sequence[Any], wide: Sequence[Any]) -> None:
    """Refuse parameters that differ and are not sizes, and results whose dtypes differ.

    Parameters that are not plain data are jaxprs, which are walked, or hints, which do not matter.
    """
    for name in equation.narrow:
        plain = any(map(_is_plain, equation.both(name)))
        if name in _COMPARED or (plain and name not in _SIZES):
            equation.same(name)
    for n, w in zip(map(dtype_of, narrow), map(dtype_of, wide), strict=True):
        if n != w:
            problem = f"it gives {n} in a sub-network, {w} in the global network"
            raise Inseparable(problem, _SAME_BUT_SIZES)


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, _PLAIN)


def sizes_of(narrow: Sequence[Any], wide: Sequence[Any]) -> tuple[tuple[Size, ...], ...]:
    """Return the sizes of the axes of each pair of variables."""
    return tuple(tuple(map(Size, _shape(n), _shape(w))) for n, w in zip(narrow, wide, strict=True))


def _shape(var: Any) -> tuple[int, ...]:
    return getattr(var.aval, "shape", ())


def dtype_of(var: Any) -> Any:
    """Return a variable's dtype, or None for a token."""
    return getattr(var.aval, "dtype", None)


def below(path: str, name: str) -> str:
    """Return the module path of an operation inside a jaxpr that stands at `path`."""
    return "/".join(part for part in (path, name) if part)


def same_values(narrow: Any, wide: Any) -> bool:
    """Return whether two parameters are equal, sizes included; jaxprs if they compute the same."""
    if type(narrow) is not type(wide):
        return False
    if isinstance(narrow, (tuple, list)):
        return len(narrow) == len(wide) and all(map(same_values, narrow, wide))
    if isinstance(narrow, (jex.ClosedJaxpr, jex.Jaxpr)):  # one type from jax 0.12 on
        programs: tuple[Any, Any] = narrow, wide
        consts = (getattr(program, "consts", ()) for program in programs)
        n, w = (getattr(program, "jaxpr", program) for program in programs)
        return (
            misaligned(n, w) is None
            and all(map(same_constants, *consts))
            and all(map(_same_equations, n.eqns, w.eqns))
        )
    return bool(narrow == wide) or bool(narrow != narrow and wide != wide)  # two NaNs are equal


def _same_equations(narrow: Any, wide: Any) -> bool:
    """Return whether aligned equations have equal sizes, dtypes, literals and parameters."""
    pairs = zip((*narrow.invars, *narrow.outvars), (*wide.invars, *wide.outvars), strict=True)
    return all(
        n.aval == w.aval and (not isinstance(n, jex.Literal) or same_constants(n.val, w.val))
        for n, w in pairs
    ) and all(same_values(narrow.params[name], wide.params[name]) for name in narrow.params)


def same_constants(narrow: Any, wide: Any) -> bool:
    """Return whether two closed-over arrays or literals have the same shape and entries."""
    a, b = numbers_of(narrow), numbers_of(wide)
    return a.shape == b.shape and same_numbers(a, b)


def numbers_of(constant: Any) -> np.ndarray:
    """Return a constant's entries; for random keys their data."""
    if isinstance(constant, jax.Array) and jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
        constant = jax.random.key_data(constant)
    return np.asarray(constant)


def same_numbers(a: np.ndarray, b: np.ndarray | np.generic) -> bool:
    """Return whether all entries are equal; NaN equals NaN, but 0 is not −0 (in a denominator)."""
    equal = a == b
    for part in (np.real, np.imag) if np.iscomplexobj(a) else (np.asarray,):
        if jnp.issubdtype(part(a).dtype, jnp.floating):
            equal &= np.signbit(part(a)) == np.signbit(part(b))
    return bool(np.all(equal | ((a != a) & (b != b))))
