"""Tracing the narrow and the global network side by side.

Both are traced to jaxprs, which have the same equations where the two differ in width alone. The
tracer walks them in step, carries a `Value` for every array, unifies the orders that each primitive
ties together, and collects every operation that cannot be separated.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from dcjax._layout.layout import Path
from dcjax._tracing.jaxprs import CALLS, inner_program, scan_counts
from dcjax._tracing.rules import RULES, either
from dcjax._tracing.unify import Conflict, Orders, Size
from dcjax._tracing.value import Axis, Context, Equation, Inseparable, Value


class Violation(NamedTuple):
    """An operation that cannot be composed exactly."""

    path: str
    operation: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = self.path or "the top level"
        return f"{where} ({self.operation}): {self.problem}.\n    Remedy: {self.remedy}."


class NotSeparableError(ValueError):
    """The network cannot be composed exactly; lists every operation that stands in the way."""

    __module__ = "dcjax"  # where users know it from

    def __init__(self, violations: Sequence[Violation]):
        self.violations = tuple(violations)
        lines = "\n".join(f"  {i}. {v}" for i, v in enumerate(violations, 1))
        super().__init__(
            "this network cannot be composed exactly from narrow sub-networks:\n" + lines
        )


class Tap(NamedTuple):
    """The array that an equation makes: where it stands, and how it holds the sub-networks'."""

    path: str
    value: Value


@dataclasses.dataclass
class PairTracer:
    """One walk over both programs, for K = `subnets`.

    `heads` are the leaves that are divided by K; a walk may ask for more (`wanted`), and is then
    repeated with them, since what a divided leaf touches must be linear. `integers` are the leaves
    that cannot be divided, and masks among them.
    """

    subnets: int
    heads: frozenset[Path]
    integers: frozenset[Path] = frozenset()
    wanted: set[Path] = dataclasses.field(default_factory=set)
    violations: dict[tuple[str, str], Violation] = dataclasses.field(default_factory=dict)
    taps: dict[tuple[int, ...], Tap] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.orders = Orders(self.subnets)
        self.context = Context(self.orders, self._merge)

    def run(
        self,
        narrow: jex.ClosedJaxpr,
        wide: jex.ClosedJaxpr,
        values: Sequence[Value],
        path: str = "",
        at: tuple[int, ...] = (),
    ) -> list[Value]:
        """Walk two jaxprs in step; `at` is the place of this jaxpr in the whole program."""
        if parting := _misaligned(path, narrow.jaxpr, wide.jaxpr):
            self.violate(parting)
            if len(narrow.jaxpr.outvars) != len(wide.jaxpr.outvars):
                raise NotSeparableError(tuple(self.violations.values()))
            return self._recovered(_sizes(narrow.jaxpr.outvars, wide.jaxpr.outvars))
        known: dict[Any, Value] = dict(zip(narrow.jaxpr.invars, values, strict=True))
        for var, n, w in zip(narrow.jaxpr.constvars, narrow.consts, wide.consts, strict=True):
            known[var] = self._constant(n, w, _below(path, _first_use(narrow.jaxpr, var)))
        for i, (n, w) in enumerate(zip(narrow.jaxpr.eqns, wide.jaxpr.eqns, strict=True)):
            name = _below(path, str(n.source_info.name_stack))
            operands = [
                self._constant(a.val, b.val, name) if isinstance(a, jex.Literal) else known[a]
                for a, b in zip(n.invars, w.invars, strict=True)
            ]
            results = self._equation(n, w, name, operands, (*at, i))
            known.update(zip(n.outvars, results, strict=True))
        return [
            self._constant(a.val, b.val, path) if isinstance(a, jex.Literal) else known[a]
            for a, b in zip(narrow.jaxpr.outvars, wide.jaxpr.outvars, strict=True)
        ]

    def _equation(
        self, n: Any, w: Any, path: str, operands: list[Value], at: tuple[int, ...]
    ) -> list[Value]:
        equation = Equation(
            n.primitive.name,
            path,
            n.params,
            w.params,
            _sizes(n.invars, w.invars),
            _sizes(n.outvars, w.outvars),
        )
        try:
            _refuse_other_kinds(equation)
            _refuse_other_dtypes(n.outvars, w.outvars)
            control = _CONTROL.get(equation.name)
            if control is not None:
                results = control(self, equation, operands, at)
            else:
                results = self._rule(equation)(self.context, equation, *operands)
        except Inseparable as reason:
            self.violate(Violation(path, equation.name, reason.problem, reason.remedy))
            return self._recovered(equation.out_sizes)
        except Conflict as conflict:
            self.violate(
                Violation(
                    path,
                    equation.name,
                    f"the channels that meet here come in different orders: {conflict}",
                    "bring them into one order, or give all layers that meet here a width that "
                    "decompose divides",
                )
            )
            return self._recovered(equation.out_sizes)
        results = [results] if isinstance(results, Value) else results
        if results and not jnp.issubdtype(_dtype(n.outvars[0]), jax.dtypes.prng_key):
            self.taps[at] = Tap(path, results[0])  # random keys cannot be compared by error
        return results

    def _rule(self, equation: Equation) -> Callable[..., Any]:
        if equation.name not in RULES:
            raise Inseparable(
                f"the primitive `{equation.name}` has no rule",
                "write the layer with other operations, or register a rule with "
                f'dcjax.register_rule("{equation.name}")',
            )
        return RULES[equation.name]

    def _merge(self, equation: Equation, values: Sequence[Value], power: int) -> str:
        """The sub-networks' channels are summed into one: a leaf must carry 1/K for the mean."""
        if power == 0:
            leaves = [leaf for v in values if v.from_params for leaf in v.linear]
            leaf = min(leaves, key=lambda leaf: leaf in self.integers, default=None)
            if leaf is None or leaf in self.heads:  # in a head the 1/K has cancelled out
                raise Inseparable(
                    "it adds up the channels of all sub-networks, with no kernel that could hold "
                    "the 1/K of a mean",
                    "normalise and average within groups whose number grows with the width "
                    "(nn.GroupNorm(num_groups=None, group_size=…) instead of LayerNorm, RMSNorm or "
                    "a fixed number of groups; heads whose number is one of the fields), and merge "
                    "the sub-networks with a dense layer or a convolution",
                )
            self.wanted.add(leaf)
        elif power != -1:
            raise Inseparable(
                "the head's 1/K is applied twice (tied parameters)", "give the head its own kernel"
            )
        return f"the sub-networks are merged at {equation.path or 'the top level'}"

    def _constant(self, narrow: Any, wide: Any, path: str) -> Value:
        """A literal or a closed-over array: the same in both networks, or one value throughout."""
        a, b = _plain(narrow), _plain(wide)
        sizes = tuple(map(Size, a.shape, b.shape))
        if a.shape == b.shape and _equal(a, b):
            return Value(tuple(map(self.context.fresh, sizes)), zero=not np.any(a))
        if a.size and b.size and _equal(a, b.flat[0]) and _equal(b, b.flat[0]):
            try:
                axes = tuple(self.context.fresh(size, const=True) for size in sizes)
                return Value(axes, zero=not np.any(a))
            except Conflict as conflict:
                remedy = "let every width be K times as large in the global network, or the same"
                self.violate(Violation(path, "constant", str(conflict), remedy))
                return self._recovered([sizes])[0]
        what = (
            f"a constant depends on the width: {a} in a sub-network, {b} in the global network"
            if a.ndim == 0
            else "an array that the network closes over varies along the channels, shape "
            f"{a.shape} in a sub-network and {b.shape} in the global network"
        )
        remedy = (
            "make it independent of the width (a field that decompose leaves alone; a head's size "
            "is, where the number of heads is one of the fields)"
            if a.ndim == 0
            else "make it a parameter of the network"
        )
        self.violate(Violation(path, "constant", what, remedy))
        return self._recovered([sizes])[0]

    def violate(self, violation: Violation) -> None:
        """Note a violation; the consequences of one in the same place are not told again."""
        told = [operation for path, operation in self.violations if path == violation.path]
        if violation.operation not in told and not (told and violation.operation == "constant"):
            self.violations[violation.path, violation.operation] = violation

    def _recovered(self, sizes: Sequence[Sequence[Size]]) -> list[Value]:
        """Arrays as if there had been no violation, so that the next ones are found as well."""
        return [
            Value(tuple(Axis(self.orders.unchecked(size)) for size in axes), from_params=False)
            for axes in sizes
        ]

    # --- programs inside programs -------------------------------------------------------------

    def _call(self, equation: Equation, operands: list[Value], at: tuple[int, ...]) -> list[Value]:
        """jit, remat, custom derivatives: the program inside, as if it stood here."""
        narrow, wide = (inner_program(params) for params in (equation.narrow, equation.wide))
        return self.run(narrow, wide, operands, equation.path, at)

    def _scan(self, equation: Equation, operands: list[Value], at: tuple[int, ...]) -> list[Value]:
        """The body over and over: what is carried has one value before and after each round."""
        consts, carried = scan_counts(equation.narrow)
        length = equation.same("length")
        fixed, carry, sliced = (
            operands[:consts],
            operands[consts : consts + carried],
            [v.with_axes(v.axes[1:]) for v in operands[consts + carried :]],
        )
        body = equation.narrow["jaxpr"], equation.wide["jaxpr"]

        def step(state: list[Value]) -> list[Value]:
            return self.run(*body, [*fixed, *state, *sliced], equation.path, at)

        state, results = self._until_stable(step, carry)
        stack = self.context.fresh(Size(length, length))
        stacked = [v.with_axes((stack, *v.axes)) for v in results[carried:]]
        return [*state, *stacked]

    def _while(self, equation: Equation, operands: list[Value], at: tuple[int, ...]) -> list[Value]:
        of_cond, of_body = equation.same("cond_nconsts"), equation.same("body_nconsts")
        fixed, carry = operands[of_cond : of_cond + of_body], operands[of_cond + of_body :]

        def step(state: list[Value]) -> list[Value]:
            body = equation.narrow["body_jaxpr"], equation.wide["body_jaxpr"]
            return self.run(*body, [*fixed, *state], equation.path, (*at, 1))

        state, _ = self._until_stable(step, carry)
        condition = equation.narrow["cond_jaxpr"], equation.wide["cond_jaxpr"]
        choice = self.run(*condition, [*operands[:of_cond], *state], equation.path, (*at, 0))
        _decided(self.context, choice[0])
        return state

    def _cond(self, equation: Equation, operands: list[Value], at: tuple[int, ...]) -> list[Value]:
        _decided(self.context, operands[0])
        counts = [len(params["branches"]) for params in (equation.narrow, equation.wide)]
        if counts[0] != counts[1]:
            raise Inseparable(
                f"it has {counts[0]} branches in a sub-network, {counts[1]} in the global network",
                "make their number independent of the width",
            )
        pairs = [*zip(equation.narrow["branches"], equation.wide["branches"], strict=True)]
        if equation.narrow.get("branches_platforms"):
            # `lax.platform_dependent`: ways to compute one thing, of which the last, the default,
            # says what; the others are trusted to agree (`verify` runs this platform's).
            return self.run(*pairs[-1], operands[1:], equation.path, (*at, len(pairs) - 1))
        branches = [
            self.run(n, w, operands[1:], equation.path, (*at, i)) for i, (n, w) in enumerate(pairs)
        ]
        return [either(self.context, values) for values in zip(*branches, strict=True)]

    def _until_stable(
        self, step: Callable[[list[Value]], list[Value]], carry: list[Value]
    ) -> tuple[list[Value], list[Value]]:
        """Run a loop's body until what it carries no longer changes."""
        while True:
            results = step(carry)
            joined = [either(self.context, pair) for pair in zip(carry, results, strict=False)]
            if list(map(_flags, joined)) == list(map(_flags, carry)):
                return joined, results
            carry = joined


_CONTROL: dict[str, Callable[..., list[Value]]] = {
    "scan": PairTracer._scan,
    "while": PairTracer._while,
    "cond": PairTracer._cond,
    **dict.fromkeys(CALLS, PairTracer._call),
}


def _refuse_other_kinds(equation: Equation) -> None:
    """Whatever is no size of an operation must not depend on the width.

    What is neither a number, a name or a type nor a tuple of those is a program, which is walked,
    or a hint.
    """
    for name, value in equation.narrow.items():
        plain = _is_plain(value) or _is_plain(equation.wide[name])
        if name in _NO_SIZES or (plain and name not in _SIZES):
            equation.same(name)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


_PLAIN = (bool, str, int, float, complex, type(None), enum.Enum, np.dtype, np.generic)
# Sizes and places, which the rules compare where they have to; and names, which say nothing.
_SIZES = ("k", "feature_group_count", "name", "shape", "new_sizes", "sizes", "slice_sizes")
_SIZES += ("padding_config", "start_indices", "limit_indices")
_NO_SIZES = ("impl", "fill_value", "branches_platforms")  # whatever their type


def _refuse_other_dtypes(narrow: Sequence[Any], wide: Sequence[Any]) -> None:
    for n, w in zip(narrow, wide, strict=True):
        if _dtype(n) != _dtype(w):
            raise Inseparable(
                f"it gives {_dtype(n)} in a sub-network, {_dtype(w)} in the global network",
                "let nothing but sizes depend on the width",
            )


def _decided(context: Context, choice: Value) -> None:
    """A branch or a loop's end must be the same in all networks."""
    if choice.own or context.spread(choice):
        raise Inseparable(
            "which way it goes depends on the sub-networks' features", "use jnp.where"
        )


def _flags(value: Value) -> tuple[Any, ...]:
    """What a round of a loop may change in a carried value; orders are solved in place."""
    consts = tuple(axis.const for axis in value.axes)
    return consts, value.own, value.power, value.linear, value.zero


class Step(NamedTuple):
    """An equation without sizes: its operands are numbers of earlier arrays, None for literals."""

    operation: str
    path: str
    ranks: tuple[int, ...]
    operands: tuple[int | None, ...]


def _steps(jaxpr: jex.Jaxpr) -> list[Step]:
    """What a program does with which arrays; what it closes over first, what it returns last."""
    numbers: dict[Any, int] = {}

    def step(name: str, path: str, operands: Sequence[Any], results: Sequence[Any]) -> Step:
        taken = (None if isinstance(v, jex.Literal) else numbers[v] for v in operands)
        found = Step(name, path, tuple(len(_shape(v)) for v in (*operands, *results)), tuple(taken))
        for var in results:
            numbers[var] = len(numbers)
        return found

    return [
        step(_CLOSES, "", (), (*jaxpr.invars, *jaxpr.constvars)),
        *(step(e.primitive.name, str(e.source_info.name_stack), e.invars, e.outvars)
          for e in jaxpr.eqns),
        step(_RETURNS, "", jaxpr.outvars, ()),
    ]  # fmt: skip


_CLOSES, _RETURNS = "closes over", "returns"  # steps that are no equations
_HINTS = {
    _CLOSES: ", and make a new array for each use",
    "dot_general": ", and the order of an einsum's products on nothing (optimize=…)",
}


def _misaligned(path: str, narrow: jex.Jaxpr, wide: jex.Jaxpr) -> Violation | None:
    """The first place where two programs part: in what they do, or with which arrays."""
    for n, w in zip(_steps(narrow), _steps(wide), strict=False):
        if n.operation != w.operation:
            names = ["nothing" if s.operation == _RETURNS else f"`{s.operation}`" for s in (n, w)]
            problem = (
                f"the networks do other things here: {names[0]} in a sub-network, {names[1]} in "
                "the global network"
            )
        elif (n.ranks, n.operands) != (w.ranks, w.operands):
            ends = {_CLOSES, _RETURNS}
            what = f"it {n.operation}" if n.operation in ends else f"`{n.operation}` takes"
            problem = f"{what} other arrays in the global network than in a sub-network"
        else:
            continue
        remedy = "let nothing but sizes depend on the width" + _HINTS.get(n.operation, "")
        return Violation(_below(path, n.path or w.path), "trace", problem, remedy)
    return None


def _sizes(narrow: Sequence[Any], wide: Sequence[Any]) -> tuple[tuple[Size, ...], ...]:
    return tuple(tuple(map(Size, _shape(n), _shape(w))) for n, w in zip(narrow, wide, strict=True))


def _shape(var: Any) -> tuple[int, ...]:
    return getattr(var.aval, "shape", ())


def _dtype(var: Any) -> Any:
    return getattr(var.aval, "dtype", None)


def _below(path: str, name: str) -> str:
    """The module path of an operation inside a program that stands at `path`."""
    return "/".join(part for part in (path, name) if part)


def _first_use(jaxpr: jex.Jaxpr, var: Any) -> str:
    """The module path of the first operation that uses a closed-over array."""
    users = (eqn for eqn in jaxpr.eqns if any(operand is var for operand in eqn.invars))
    return next((str(eqn.source_info.name_stack) for eqn in users), "")


def _plain(constant: Any) -> np.ndarray:
    """A constant's entries; random keys as their data."""
    if isinstance(constant, jax.Array) and jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
        constant = jax.random.key_data(constant)
    return np.asarray(constant)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether all entries are equal: NaN to NaN, and the zeros' signs, by which one may divide."""
    equal = a == b
    for part in (np.real, np.imag) if np.iscomplexobj(a) else (np.asarray,):
        if jnp.issubdtype(part(a).dtype, jnp.floating):
            equal &= np.signbit(part(a)) == np.signbit(part(b))
    return bool(np.all(equal | ((a != a) & (b != b))))
