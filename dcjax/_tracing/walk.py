"""The walk over the jaxprs of the narrow and the global network, in step.

It carries a `Value` for every array, lets a rule for each primitive unify the orders that meet
there, and collects every operation that cannot be composed exactly.
"""

import dataclasses
from collections.abc import Container, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from dcjax._layout.layout import Path
from dcjax._tracing.align import (
    below,
    dtype_of,
    misaligned,
    numbers_of,
    refuse_differences,
    same_constants,
    same_numbers,
    same_values,
    sizes_of,
)
from dcjax._tracing.errors import GROUPED, NARROWABLE, Inseparable, NotSeparableError, Violation
from dcjax._tracing.factors import ONE, UNKNOWN, Differs, Factors, Scale, ratio_of
from dcjax._tracing.jaxprs import CALLS, PROGRAMS, located, needed_arrays
from dcjax._tracing.rules import RULES
from dcjax._tracing.scalars import Scalars
from dcjax._tracing.unify import Conflict, Orders, Size
from dcjax._tracing.value import Axis, Context, Equation, Value


class Tap(NamedTuple):
    """The first result of an equation: how it holds the sub-networks', and where it is."""

    path: str
    value: Value
    sources: tuple[Any, ...]


class Here(NamedTuple):
    """The equation at which a walk is.

    Attributes:
      forgiving: whether no result depends on it, so that it may violate.
      sources: its source, preceded by those of the equations that it lies within.
    """

    forgiving: bool = False
    sources: tuple[Any, ...] = ()


# Operations that apply a kernel or a table to an input without channels of the sub-networks.
_APPLIES = ("dot_general", "conv_general_dilated", "gather", "dynamic_slice")

# Operations by what they do to scales: those of the first operand stay, all operands' multiply, or
# must be equal. Operands that they do not name must have the scale 1, as those of all others.
_KEEPS_SCALE = ("neg", "copy", "copy_p", "real", "imag", "conj", "sharding_constraint", "name")
_KEEPS_SCALE += ("convert_element_type", "transpose", "squeeze", "broadcast_in_dim", "reshape")
_KEEPS_SCALE += ("tile", "slice", "split", "rev", "reduce_sum", "reduce_window_sum", "cumsum")
_KEEPS_SCALE += ("gather", "dynamic_slice")
_MULTIPLIES = ("mul", "div", "dot_general", "conv_general_dilated")
_ADDS = ("add", "sub", "add_any", "concatenate", "pad", "select_n")
_MANTISSA = jnp.finfo(jnp.bfloat16).nmant  # from its 7 bits on, rounding counts as exact


@dataclasses.dataclass
class Walk:
    """One walk over both jaxprs.

    Attributes:
      orders: the unifier, for K sub-networks.
      heads: the leaves that are divided by K.
      integers: the leaves that cannot be divided, masks among them.
      lines: whether to tell the lines of the user's code: module paths are those of Flax Linen.
      new_heads: leaves that must be divided too. Since arrays that depend on a divided leaf allow
        linear operations only, the walk is then repeated with these among the `heads`.
      met: leaves that meet features, or are applied to an input, perhaps cast or scaled before. A
        head among them has been found; what a leaf that meets nothing is for cannot be known.
      doubtful: leaves from which an operation that was forgiven makes something by itself.
      factors: the leaves' factors.
      forgave_numbers: whether an operation that was forgiven takes a number that depends on the
        width. What leaf it is meant for cannot be known.
      violations: what cannot be composed exactly, by path and operation.
      taps: the arrays that `verify` may compare, by the place of their equation: its index,
        preceded by those of the equations that it lies within.
      here: where the walk is.
    """

    orders: Orders
    heads: frozenset[Path]
    integers: Container[Path]
    lines: bool = False
    new_heads: set[Path] = dataclasses.field(default_factory=set)
    met: set[Path] = dataclasses.field(default_factory=set)
    doubtful: set[Path] = dataclasses.field(default_factory=set)
    factors: Factors = dataclasses.field(default_factory=Factors)
    forgave_numbers: bool = False
    violations: dict[tuple[str, str], Violation] = dataclasses.field(default_factory=dict)
    taps: dict[tuple[int, ...], Tap] = dataclasses.field(default_factory=dict)
    here: Here = dataclasses.field(default_factory=Here)

    def __post_init__(self) -> None:
        self.context = Context(self.orders, self._merge, self._like)

    def run(
        self,
        narrow: jex.ClosedJaxpr,
        wide: jex.ClosedJaxpr,
        values: Sequence[Value],
        path: str = "",
        at: tuple[int, ...] = (),
        needed: Sequence[bool] | None = None,
    ) -> list[Value]:
        """Walk two jaxprs that stand at the module `path` and the place `at`.

        Violations are forgiven where the `needed` results (default: all) do not depend on them.
        """
        (forgiving, sources), arrays = self.here, needed_arrays(narrow.jaxpr, needed)
        outvars = narrow.jaxpr.outvars, wide.jaxpr.outvars
        if found := misaligned(narrow.jaxpr, wide.jaxpr):
            self.here = Here(forgiving, (*sources, found.source))
            self.violate(below(path, _name(found.source)), "trace", found.problem, found.remedy)
            self.here = Here(forgiving, sources)
            if len(outvars[0]) != len(outvars[1]):
                raise NotSeparableError(tuple(self.violations.values()))
            return self._unknown(sizes_of(*outvars))
        known: dict[Any, Value] = dict(zip(narrow.jaxpr.invars, values, strict=True))

        scalars = Scalars()

        def value_of(n: Any, w: Any, path: str) -> Value:
            if isinstance(n, jex.Literal):
                return self._constant(n.val, w.val, path)
            if n in scalars.differing:
                return self._constant(*scalars.differing[n], path)
            return known[n]

        def read(variables: Iterable[Any], wide_variables: Iterable[Any], path: str) -> list[Value]:
            pairs = zip(variables, wide_variables, strict=True)
            return [value_of(n, w, path) for n, w in pairs]

        for var, n, w in zip(narrow.jaxpr.constvars, narrow.consts, wide.consts, strict=True):
            source = _first_use(narrow.jaxpr, var)
            self.here = Here(var not in arrays, (*sources, source))
            known[var] = self._constant(n, w, below(path, _name(source)))
        for i, (n, w) in enumerate(zip(narrow.jaxpr.eqns, wide.jaxpr.eqns, strict=True)):
            results_needed = [var in arrays for var in n.outvars]
            unused = not (any(results_needed) or n.effects)
            self.here = Here(unused, (*sources, n.source_info))
            inner_path = below(path, _name(n.source_info))
            if (numbers := scalars.follow(n, w)) and n.outvars[0] not in scalars.differing:
                known[n.outvars[0]] = self._constant(*numbers, inner_path)
            if numbers:
                continue
            operands = read(n.invars, w.invars, inner_path)
            results = self._equation(n, w, inner_path, operands, (*at, i), results_needed)
            known.update(zip(n.outvars, results, strict=True))
        self.here = Here(forgiving, sources)
        return read(*outvars, path)

    def finish(self, results: Sequence[Value], path: str) -> None:
        """Demand that the results are the sub-networks' own, and choose what is still free."""
        self._return(results, path)
        self.factors.settle()

    def _return(self, results: Sequence[Value], path: str) -> None:
        """Note a violation if results are multiples of the sub-networks' own."""
        try:
            self._be_one(results)
        except Inseparable as reason:
            self.violate(path, "constant", *_told(reason))

    def _equation(
        self,
        n: Any,
        w: Any,
        path: str,
        operands: list[Value],
        at: tuple[int, ...],
        needed: list[bool],
    ) -> list[Value]:
        def walk(
            narrow: jex.ClosedJaxpr, wide: jex.ClosedJaxpr, values: Sequence[Value], *place: int
        ) -> list[Value]:
            # The results of a loop's round feed the next one, so any may be needed.
            some = needed if n.primitive.name in CALLS else [any(needed)] * len(narrow.out_avals)
            results = self.run(narrow, wide, values, path, at + place, some)
            if n.primitive.name not in CALLS:  # a round or a branch is as good as the next one
                self._return(results, path)
            return results

        equation = Equation(
            n.primitive.name,
            path,
            n.params,
            w.params,
            sizes_of(n.invars, w.invars),
            sizes_of(n.outvars, w.outvars),
            walk,
        )
        from_params = all(value.from_params for value in operands)
        leaves = frozenset[Path]().union(*(value.leaves for value in operands))
        scale = ONE
        try:
            refuse_differences(equation, n.outvars, w.outvars)
            scale = self._scale(n, operands)
            if equation.name not in RULES:
                raise Inseparable(
                    f"the primitive `{equation.name}` has no rule",
                    "write the layer with other operations, or register a rule with "
                    f'dcjax.register_rule("{equation.name}")',
                )
            results = RULES[equation.name](self.context, equation, *operands)
        except (Inseparable, Conflict) as reason:
            if not self._is_shared(equation, operands):
                operation = "constant" if isinstance(reason, Differs) else equation.name
                self.violate(path, operation, *_told(reason))
                self.doubtful |= leaves
                return self._unknown(equation.out_sizes, from_params, leaves)
            axes = (map(self.context.fresh, sizes) for sizes in equation.out_sizes)
            results = [Value(tuple(own), from_params=from_params) for own in axes]
        results = [results] if isinstance(results, Value) else results
        if equation.name not in CALLS:
            results = [dataclasses.replace(value, scale=scale) for value in results]
        if leaves and equation.name not in PROGRAMS:  # those tell by what they hold
            if self._meets(equation, operands):
                self.met |= leaves
            else:
                results = [dataclasses.replace(value, leaves=leaves) for value in results]
        # `verify` compares what results depend on; random keys cannot be compared by error.
        random = results and jnp.issubdtype(dtype_of(n.outvars[0]), jax.dtypes.prng_key)
        if results and not random and not self.here.forgiving:
            self.taps[at] = Tap(path, results[0], self.here.sources)
        return results

    def _scale(self, eqn: Any, operands: Sequence[Value]) -> Scale:
        """Return the scale of an operation's results, and solve for what its operands need."""
        name, scales = eqn.primitive.name, [value.scale for value in operands]
        if name in CALLS or all(scale is ONE for scale in scales):
            return ONE
        if any(scale is UNKNOWN for scale in scales):
            return UNKNOWN
        if self.here.forgiving:
            self.forgave_numbers |= any(scale.log for scale in scales)
            return ONE
        if not all(_is_precise(dtype_of(v)) for v in eqn.outvars):
            name = "round"
        if name in _KEEPS_SCALE:
            self._be_one(operands[1:])
            return scales[0]
        if name in _MULTIPLIES:
            scale = scales[0].plus(scales[1], -1 if name == "div" else 1)
            if any(each.log and not each.powers for each in scales):
                self.factors.wish(scale)
            return scale
        if name in _ADDS:
            choice = name == "select_n"
            self._be_one(operands[:choice])
            terms = [value.scale for value in operands[choice:] if not value.zero] or [ONE]
            self.factors.be_equal(terms)
            return terms[0]
        self._be_one(operands)
        return ONE

    def _be_one(self, values: Iterable[Value]) -> None:
        """Demand that arrays hold the sub-networks' own, not multiples of them."""
        for value in values:
            if not (value.zero or self.here.forgiving or value.scale is UNKNOWN):
                self.factors.be_one(value.scale)

    def _meets(self, equation: Equation, operands: Sequence[Value]) -> bool:
        """Return whether leaves meet features here, or are applied to an input."""
        others = [value for value in operands if not value.from_params]
        grows = any(self.context.grows(axis) for value in others for axis in value.axes)
        return grows or (bool(others) and equation.name in _APPLIES)

    def _like(self, name: str, equation: Equation, *values: Value) -> Any:
        return RULES[name](self.context, equation, *values)

    def _is_shared(self, equation: Equation, operands: Sequence[Value]) -> bool:
        """Return whether the operation computes the same in all networks, whatever it is."""
        arrays = (*equation.in_sizes, *equation.out_sizes)
        if any(size.grows for sizes in arrays for size in sizes):
            return False
        if any(v.averaged_because or self.factors.resolve(v.scale).log for v in operands):
            return False
        return all(same_values(*equation.both(name)) for name in equation.narrow)

    def _merge(self, equation: Equation, values: Sequence[Value], power: int) -> str:
        """Choose the leaf that holds the 1/K where the sub-networks' channels are summed into one.

        Returns the reason why the result is a mean.
        """
        if power == 0:
            leaves = [leaf for v in values if v.from_params for leaf in v.linear]
            leaf = min(leaves, key=lambda leaf: leaf in self.integers, default=None)
            if leaf is None or leaf in self.heads:  # in a head the 1/K has cancelled out
                raise Inseparable(
                    "it adds up the channels of all sub-networks, with no kernel that could hold "
                    "the 1/K of a mean",
                    f"{GROUPED} for LayerNorm, RMSNorm or GroupNorm(num_groups=n), which then act "
                    "within each sub-network's channels; otherwise average within groups or heads "
                    "whose number grows with the width, and merge the sub-networks with a dense "
                    "layer or a convolution",
                )
            self.new_heads.add(leaf)
        elif power != -1:
            raise Inseparable(
                "the head's 1/K is applied twice (tied parameters)",
                "give the head a kernel of its own",
            )
        return f"the sub-networks are merged at {self._where(equation.path) or 'the top level'}"

    def _where(self, path: str) -> str:
        """Return the place of the current operation for a message."""
        return located(path, self.here.sources) if self.lines else path

    def _constant(self, narrow: Any, wide: Any, path: str) -> Value:
        """Return a literal or closed-over array: which may vary only along fixed axes."""
        a, b = numbers_of(narrow), numbers_of(wide)
        sizes = tuple(map(Size, a.shape, b.shape))
        if same_constants(narrow, wide):
            return Value(tuple(map(self.context.fresh, sizes)), zero=not np.any(a))
        # The array may not vary along axes that grow: compare with their first entries.
        row = tuple(slice(1) if size.grows else slice(None) for size in sizes)
        if a.size and b.size and a.ndim and same_numbers(a, b[row]) and same_numbers(b, b[row]):
            const = [size.grows for size in sizes]
            axes = self.fresh_axes(sizes, path, "constant", const)
            if axes is not None:
                return Value(axes, zero=not np.any(a))
        elif a.ndim == 0:
            problem = f"a constant depends on the width: {a} in a sub-network, {b} in the "
            problem += "global network"
            if scale := ratio_of(a, b, problem):
                return Value(scale=scale)
            self.violate(
                path,
                "constant",
                problem,
                "make it independent of the width (a field that decompose leaves alone; a head's "
                "size is, where the number of heads is one of the fields)",
            )
        else:
            self.violate(
                path,
                "constant",
                "an array that the network closes over varies along the channels, shape "
                f"{a.shape} in a sub-network and {b.shape} in the global network",
                "make it a parameter of the network",
            )
        return self._unknown([sizes])[0]

    def fresh_axes(
        self,
        sizes: Sequence[Size],
        path: str,
        operation: str,
        const: Iterable[bool] = repeat(False),
    ) -> tuple[Axis, ...] | None:
        """Return new axes, or None after noting the violation if a size fits no K sub-networks."""
        try:
            return tuple(map(self.context.fresh, sizes, const))
        except Conflict as conflict:
            remedy = "let every width be K times as large in the global network, or the same"
            self.violate(path, operation, str(conflict), remedy)
            return None

    def violate(self, path: str, operation: str, problem: str, remedy: str) -> None:
        """Note a violation, unless it follows from an earlier one in the same place."""
        if self.here.forgiving:
            return
        path = self._where(path)
        told = [name for place, name in self.violations if place == path]
        if operation not in told and not (told and operation == "constant"):
            self.violations[path, operation] = Violation(path, operation, problem, remedy)

    def _unknown(
        self,
        sizes: Iterable[Sequence[Size]],
        from_params: bool = False,
        leaves: frozenset[Path] = frozenset(),
    ) -> list[Value]:
        """Return arrays as if there had been no violation, so that the next ones are found too."""
        return [
            Value(
                tuple(Axis(self.orders.unchecked(size)) for size in axes),
                from_params=from_params,
                leaves=leaves,
                scale=UNKNOWN,
            )
            for axes in sizes
        ]


def _is_precise(dtype: Any) -> bool:
    """Return whether numbers of this type may be rescaled."""
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).nmant >= _MANTISSA


def _first_use(jaxpr: jex.Jaxpr, var: Any) -> Any:
    """Return the source of the first operation that uses a closed-over array, or None."""
    users = (eqn for eqn in jaxpr.eqns if any(operand is var for operand in eqn.invars))
    return next((eqn.source_info for eqn in users), None)


def _name(source: Any) -> str:
    """Return the module path in a source."""
    return str(source.name_stack) if source else ""


def _told(reason: Inseparable | Conflict) -> tuple[str, str]:
    """Return the problem and the remedy."""
    if isinstance(reason, Inseparable):
        return reason.args
    return (
        f"the channels that meet here come in different orders: {reason}",
        "bring them into one order, or give all layers that meet here a width that decompose "
        f"divides ({NARROWABLE} for widths that are numbers in the code)",
    )
