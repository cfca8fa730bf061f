"""Check that composition was exact: compare every layer's feature map."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from dcjax._checks import dtype_of, leaves_of
from dcjax._compose.compose import compose
from dcjax._compose.head_weights import head_weights_of
from dcjax._compose.stack import check_stacked
from dcjax._compose.stacked import Stacked
from dcjax._layout.layout import Layout, table
from dcjax._layout.order import Order
from dcjax._linen.decompose import DEFAULT_FIELDS
from dcjax._linen.intermediates import Place, evaluate
from dcjax._linen.network import input_of, networks, separation, traced_layout
from dcjax._tracing.solve import Separation
from dcjax.samples import Samples


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
    """

    layers: tuple[LayerError, ...]
    error: float
    unseen: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [("layer", "shape", "absolute", "relative")]
        rows += [(e.layer, str(e.shape), f"{e.absolute:.1e}", f"{e.relative:.1e}") for e in self[0]]
        text = f"{table(rows)}\nlargest relative error {self.error:.1e}"
        if self.unseen:
            text += f"\nnot compared, within cond or while: {', '.join(self.unseen)}"
        return text


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
    layers = _layers(found, several=len(inputs) > 1)

    def features(program: jex.ClosedJaxpr) -> Callable[[PyTree, Array], dict[Place, list[Array]]]:
        return jax.jit(lambda *args: evaluate(program, jax.tree.leaves(args), layers))

    narrow = features(found.narrow)
    split = zip(*map(both.split, inputs), strict=True)
    own = [narrow(variables_k, *xs) for variables_k, xs in zip(stacked, split, strict=True)]
    if not any(np.any(np.asarray(m)) for maps in own for rounds in maps.values() for m in rounds):
        raise ValueError(
            "every feature map of the sub-networks is zero, so nothing can be compared: give an x "
            "with other values, such as jax.random.normal(jax.random.key(1), x.shape)"
        )
    composed = features(found.wide)(variables, *map(both.join, inputs))
    head_weights = np.asarray(head_weights_of(weights, both.subnets), np.float64)
    report = _report(found, layers, own, composed, head_weights)
    half = any(a.dtype.itemsize < 4 for maps in composed.values() for a in maps)
    limit = tolerance if tolerance is not None else 0.1 if half else 1e-4
    if not report.error <= limit:
        raise ValueError(
            f"the composed network differs from its sub-networks by more than "
            f"{limit:.1e}:\n{report}"
        )
    return report


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
    for place, (path, value, _) in found.taps.items():
        call, *within = place if several else (0, place)
        if within and not value.from_params and not value.power:
            last[f"{path} (call {call + 1})" if call else path] = place
    return {place: path for path, place in sorted(last.items(), key=lambda item: item[1])}


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
        errors = [_difference(wide, parts, orders, merged) for wide, *parts in rounds]
        if not errors:
            unseen.append(name)
            continue
        absolute, relative = map(float, np.max(np.array(errors), axis=0))  # NaN stays NaN
        rows.append(LayerError(name, composed[place][0].shape, absolute, relative))
    error = float(np.max([row.relative for row in rows], initial=0.0))
    return Report(tuple(rows), error, tuple(unseen))


def _difference(
    wide: Array, parts: Sequence[Array], orders: Sequence[Order], head_weights: np.ndarray | None
) -> tuple[float, float]:
    """Return the largest difference of one feature map, and its ratio to the largest magnitude."""
    subnets = len(parts)
    kind = np.complex128 if np.iscomplexobj(wide) else np.float64
    whole, own = np.asarray(wide, kind), [np.asarray(part, kind) for part in parts]
    places = [order.indices(subnets) for order in orders]
    with np.errstate(invalid="ignore"):  # between infinities: not a number, which is refused
        if head_weights is not None:
            own = [np.tensordot(head_weights, np.stack(own), 1)] * subnets
        blocks = [whole[np.ix_(*(index[k] for index in places))] for k in range(len(own))]
        differences = [np.abs(b - o) for b, o in zip(blocks, own, strict=True)]
    absolute = max((np.max(d, initial=0.0) for d in differences), default=0.0)
    largest = max(np.max(np.abs(o), initial=0.0) for o in own)
    return absolute, absolute / largest if largest else absolute
