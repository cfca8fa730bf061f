"""Check that composition was exact: compare every layer's feature map."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from dcjax._checks import array_of, dtype_of, leaves_of, shown
from dcjax._compose.compose import compose
from dcjax._compose.head_weights import head_weights_of
from dcjax._compose.stack import check_stacked
from dcjax._compose.stacked import Stacked
from dcjax._layout import html
from dcjax._layout.layout import Layout, table
from dcjax._layout.order import Order
from dcjax._linen.decompose import DEFAULT_FIELDS
from dcjax._linen.intermediates import Place, evaluate
from dcjax._linen.network import computed, input_of, networks, separation, traced_layout
from dcjax._tracing.functions import arguments_of
from dcjax._tracing.jaxprs import located
from dcjax._tracing.solve import Separation, identity_layout, separate
from dcjax.samples import Samples

ROUNDING = 1e-4
"""The largest relative error that float32 explains."""


class LayerError(NamedTuple):
    """The errors of one layer, with its path and its feature map's global shape."""

    layer: str
    shape: tuple[int, ...]
    absolute: float
    relative: float


class Report(NamedTuple):
    """How well the composed network's feature maps agree with the sub-networks'.

    Attributes:
      layers: one `LayerError` for each layer, in the order of the network.
      error: the largest difference over the largest magnitude, over all layers.
      unseen: paths of layers inside `lax.cond` or `lax.while_loop`, which cannot be compared; the
        layers behind them are.
      concatenated: the shapes of the outputs that no head merges, such as `(2, 4 × 8)`: in the
        composed network they hold the sub-networks' outputs side by side.
    """

    layers: tuple[LayerError, ...]
    error: float
    unseen: tuple[str, ...] = ()
    concatenated: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [("layer", "shape", "absolute", "relative")]
        rows += [(e.layer, str(e.shape), f"{e.absolute:.1e}", f"{e.relative:.1e}") for e in self[0]]
        return "\n".join([table(rows), *self._lines()])

    def _repr_html_(self) -> str:
        head = ["layer", "shape", "absolute", "relative"]
        rows = [
            [escape(e.layer), str(e.shape), f"{e.absolute:.1e}", _shaded(e.relative)]
            for e in self.layers
        ]
        return f"<div>{html.table(head, rows)}{'<br>'.join(map(escape, self._lines()))}</div>"

    def _lines(self) -> list[str]:
        """Return the lines below the table."""
        lines = [f"largest relative error {self.error:.1e}"]
        if self.unseen:
            lines.append(f"not compared, within cond or while: {', '.join(self.unseen)}")
        if self.concatenated:
            lines.append(f"output: concatenated {', '.join(self.concatenated)}, without a head")
        return lines


def _shaded(error: float) -> str:
    """Return a relative error on green if it is one of rounding in float32, else on red."""
    colour = "#1a98502e" if error < ROUNDING else "#d730276b"
    return f'<span style="background:{colour}">{error:.1e}</span>'


def verify(
    network: Any,
    stacked: Stacked,
    x: PyTree[Shaped[Array | np.ndarray, "..."]],
    *,
    samples: Samples | None = None,
    fields: Sequence[str] = DEFAULT_FIELDS,
    tolerance: float | None = None,
    weights: Float[Array | np.ndarray, " K"] | None = None,
    calls: Sequence[Mapping[str, Any]] = (),
    **kwargs: Any,
) -> Report:
    """Compare every layer's feature map of the composed network with the K sub-networks'.

    A layer is a module of the network, or the network's operations outside its modules; its feature
    map is the last array it computes. Layers inside `nn.scan` are compared in every round. Layers
    inside `nn.cond` and `nn.while_loop` are not compared; the report names them. Behind the merge
    the composed network's arrays are compared with the sub-networks' mean, weighted by `weights`.
    Outputs that no head merges are concatenated; the report's last line names them.

    Args:
      network: the global network, a Flax Linen module.
      stacked: the K sub-networks' variables.
      x: a batch of images, before `samples`, or a tree of arrays.
      samples: what each sub-network sees (`dcjax.samples`); default `replicate(K)`.
      fields: the module's fields that carry width (see `decompose`).
      tolerance: the largest accepted relative error; by default 1e-4, or 0.1 if the network
        computes in half precision (one rounding of bfloat16 is 4e-3).
      weights: as in `compose`.
      calls: further calls, as in `init`; their layers are compared too.
      **kwargs: what else the network's call needs.

    Returns:
      A `Report`; printing it gives a table.

    Raises:
      ValueError: an error is above the tolerance, or NaN; the message holds the table. The
        variables are not this network's. Every feature map is zero.
      TypeError: an argument has another type.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    >>> report = dcjax.verify(network, dcjax.init(network, 4, jax.random.key(0), x), x)
    >>> report.error < 1e-5
    True
    """
    check_stacked(stacked)
    variables = compose(stacked, weights=weights)
    both = networks(network, len(stacked), samples, fields, calls, kwargs)
    inputs = [input_of("x", x) for x in both.inputs(x)]
    if both.subnets == 1:
        _check_layout(traced_layout(both, inputs), stacked.layout)
        return Report((), 0.0)  # one sub-network is the global network
    found = separation(both, inputs)
    _check_layout(found.layout, stacked.layout)
    _check_dtypes(found, stacked)
    split = zip(*map(both.split, inputs), strict=True)
    own = [(tree, *xs) for tree, xs in zip(stacked, split, strict=True)]
    composed = (variables, *map(both.join, inputs))
    layers = _layers(found, several=len(inputs) > 1)
    outputs = _concatenated(*(computed(both, tree) for tree in found.results))
    return _compared(found, layers, own, composed, weights, tolerance, outputs)


def verify_functions(
    narrow: Callable[..., Any],
    wide: Callable[..., Any],
    narrow_args: tuple[PyTree, ...],
    wide_args: tuple[PyTree, ...],
    stacked: Stacked,
    *,
    tolerance: float | None = None,
    weights: Float[Array | np.ndarray, " K"] | None = None,
) -> Report:
    """Compare the arrays of a composed network with its sub-networks', for any network in JAX.

    Takes the arguments of `layout_of_functions`. A layer is here a line of code, and its feature
    map is the last array that the line computes. The functions' results are layers too.

    Args:
      narrow: the sub-network, a function `(variables, *inputs) -> outputs`.
      wide: the global network, likewise.
      narrow_args: a sub-network's variables and inputs; only their shapes and dtypes matter.
      wide_args: the global network's. The inputs are arrays; where one is K times as long as in the
        sub-network, it holds the sub-networks' inputs side by side.
      stacked: the K sub-networks' variables, as `dcjax.stack` returns them.
      tolerance: the largest accepted relative error, as in `verify`.
      weights: as in `compose`.

    Returns:
      A `Report`; printing it gives a table.

    Raises:
      ValueError: an error is above the tolerance, or NaN; the message holds the table. The
        variables are not this network's. Every feature map is zero.
      TypeError: an argument has another type.

    >>> import jax, dcjax
    >>> def network(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["head"]
    >>> def arguments(width, key):
    ...     keys = jax.random.split(jax.random.key(key), 3)
    ...     shapes = {"hidden": (3, width), "head": (width, 2)}
    ...     params = {n: jax.random.normal(k, shapes[n]) for n, k in zip(shapes, keys)}
    ...     return params, jax.random.normal(keys[2], (5, 3))
    >>> sides = (network, network, arguments(4, 0), arguments(8, 0))
    >>> trees = [arguments(4, k)[0] for k in range(2)]
    >>> stacked = dcjax.stack(trees, like=dcjax.layout_of_functions(*sides, 2))
    >>> dcjax.verify_functions(*sides, stacked).error < 1e-5
    True
    """
    check_stacked(stacked)
    narrow_args = arguments_of("narrow", narrow, narrow_args)
    wide_args = arguments_of("wide", wide, wide_args)
    subnets = len(stacked)
    if subnets == 1:
        _check_layout(identity_layout(wide_args[0]), stacked.layout)
        return Report((), 0.0)  # one sub-network is the global network
    found = separate(narrow, wide, narrow_args, wide_args, subnets, lines=True)
    _check_layout(found.layout, stacked.layout)
    _check_dtypes(found, stacked)
    variables = _in_order_of(wide_args[0], compose(stacked, weights=weights))
    inputs = [array_of("an input of wide_args", x) for x in jax.tree.leaves(wide_args[1:])]
    shapes = [x.shape for x in jax.tree.leaves(narrow_args[1:])]
    own = [
        (
            _in_order_of(narrow_args[0], tree),
            [_part(x, shape, k, subnets) for x, shape in zip(inputs, shapes, strict=True)],
        )
        for k, tree in enumerate(stacked)
    ]
    layers = dict(sorted((_layers(found, several=False) | _results(found)).items()))
    outputs = _concatenated(*map(jax.tree.leaves, found.results))
    return _compared(found, layers, own, (variables, inputs), weights, tolerance, outputs)


def _in_order_of(like: PyTree, tree: PyTree) -> list[Array]:
    """Return a tree's leaves in the order in which another tree has those of the same paths."""
    leaves = leaves_of(tree, "variables")
    return [leaves[path] for path in leaves_of(like, "variables")]


def _part(whole: Array, shape: tuple[int, ...], k: int, subnets: int) -> Array:
    """Return sub-network k's part, of this shape, of an input that holds all of them."""
    for axis, size in enumerate(shape):
        if size != whole.shape[axis]:
            whole = jax.numpy.split(whole, subnets, axis)[k]
    return whole


def _compared(
    found: Separation,
    layers: dict[Place, str],
    own_args: Sequence[PyTree],
    composed_args: PyTree,
    weights: Any,
    tolerance: float | None,
    concatenated: tuple[str, ...],
) -> Report:
    """Run all networks, compare the layers, and raise if an error is above the tolerance."""
    if not isinstance(tolerance, (int, float, np.integer, np.floating, type(None))):
        raise TypeError(f"tolerance must be a number or None, got {shown(tolerance)}")

    def features(program: jex.ClosedJaxpr) -> Callable[[PyTree], dict[Place, list[Array]]]:
        return jax.jit(lambda args: evaluate(program, jax.tree.leaves(args), layers))

    own = list(map(features(found.narrow), own_args))
    if not any(np.any(np.asarray(m)) for maps in own for rounds in maps.values() for m in rounds):
        raise ValueError(
            "every feature map of the sub-networks is zero, so nothing can be compared: give an x "
            "with other values, such as jax.random.normal(jax.random.key(1), x.shape)"
        )
    composed = features(found.wide)(composed_args)
    head_weights = np.asarray(head_weights_of(weights, len(own)), np.float64)
    report = _report(found, layers, own, composed, head_weights)
    report = report._replace(concatenated=concatenated)
    half = any(a.dtype.itemsize < 4 for maps in composed.values() for a in maps)
    limit = tolerance if tolerance is not None else 0.1 if half else ROUNDING
    if not report.error <= limit:
        raise ValueError(
            f"the composed network differs from its sub-networks by more than "
            f"{limit:.1e}:\n{report}"
        )
    return report


def _concatenated(narrow: Sequence[Any], wide: Sequence[Any]) -> tuple[str, ...]:
    """Return the shapes of the outputs that grow, such as `(2, 4 × 8)`."""
    sizes = [list(zip(n.shape, w.shape, strict=True)) for n, w in zip(narrow, wide, strict=True)]
    return tuple(
        f"({', '.join(str(w) if n == w else f'{w // n} × {n}' for n, w in axes)})"
        for axes in sizes
        if any(n != w for n, w in axes)
    )


def _check_layout(expected: Layout, got: Layout) -> None:
    if expected != got:
        raise ValueError(
            "stacked does not belong to this network with these samples and this input: expected\n"
            f"{expected}\ngot\n{got}\n"
            "Pass all variables, as dcjax.init returns them for this network"
        )


def _check_dtypes(found: Separation, stacked: Stacked) -> None:
    """Refuse variables of other dtypes than the network was traced with."""
    leaves = leaves_of(stacked.tree, "stacked tree")
    expected = [aval.dtype for aval in found.narrow.in_avals[: len(leaves)]]
    wrong = [
        f"{'/'.join(path)}: expected {dtype}, got {dtype_of(leaf)}"
        for (path, leaf), dtype in zip(leaves.items(), expected, strict=True)
        if dtype_of(leaf) != dtype
    ]
    if wrong:
        raise ValueError(
            "the network initialises variables of other dtypes:\n  "
            + "\n  ".join(wrong)
            + "\nCast them, or give the network the dtype (such as Flax's param_dtype)"
        )


def _layers(found: Separation, several: bool) -> dict[Place, str]:
    """Return the place of every module's last feature map in each call, with the module's path."""
    last: dict[str, Place] = {}
    for place, tap in found.taps.items():
        call, *within = place if several else (0, place)
        if within and not tap.value.from_params and not tap.value.power:
            name = located(tap.path, tap.sources) if found.lines else tap.path
            last[f"{name} (call {call + 1})" if call else name] = place
    return {place: path for path, place in sorted(last.items(), key=lambda item: item[1])}


def _results(found: Separation) -> dict[Place, str]:
    """Return the places where the networks' results are computed, with the results' numbers."""
    made = {eqn.outvars[0]: (i,) for i, eqn in enumerate(found.narrow.jaxpr.eqns) if eqn.outvars}
    results = [var for var in found.narrow.jaxpr.outvars if not isinstance(var, jex.Literal)]
    places = {made[var]: f"result {i}" for i, var in enumerate(results) if var in made}
    return {place: name for place, name in places.items() if place in found.taps}


def _report(
    found: Separation,
    layers: dict[Place, str],
    own: list[dict[Place, list[Array]]],
    composed: dict[Place, list[Array]],
    head_weights: np.ndarray,
) -> Report:
    rows, unseen = [], []
    for place, name in layers.items():
        value = found.taps[place].value
        orders = [found.orders.settle(axis.term) for axis in value.axes]
        rounds = zip(composed.get(place, ()), *(maps.get(place, ()) for maps in own), strict=True)
        merged = head_weights if value.averaged_because else None
        # Between a leaf with a factor and the number that it makes up for.
        scale = found.factors.value(value.scale)
        errors = [_difference(wide, parts, orders, merged, scale) for wide, *parts in rounds]
        if not errors:
            unseen.append(name)
            continue
        absolute, relative = map(float, np.max(np.array(errors), axis=0))  # NaN stays NaN
        rows.append(LayerError(name, composed[place][0].shape, absolute, relative))
    error = float(np.max([row.relative for row in rows], initial=0.0))
    return Report(tuple(rows), error, tuple(unseen))


def _difference(
    wide: Array,
    parts: Sequence[Array],
    orders: Sequence[Order],
    head_weights: np.ndarray | None,
    scale: float,
) -> tuple[float, float]:
    """Return the largest difference of one feature map, and its ratio to the largest magnitude."""
    subnets = len(parts)
    kind = np.complex128 if np.iscomplexobj(wide) else np.float64
    whole, own = np.asarray(wide, kind), [scale * np.asarray(part, kind) for part in parts]
    places = [order.indices(subnets) for order in orders]
    with np.errstate(invalid="ignore"):  # between infinities: not a number, which is refused
        if head_weights is not None:
            own = [np.tensordot(head_weights, np.stack(own), 1)] * subnets
        blocks = [whole[np.ix_(*(index[k] for index in places))] for k in range(len(own))]
        differences = [np.abs(b - o) for b, o in zip(blocks, own, strict=True)]
    absolute = max((np.max(d, initial=0.0) for d in differences), default=0.0)
    largest = max(np.max(np.abs(o), initial=0.0) for o in own)
    return absolute, absolute / largest if largest else absolute
