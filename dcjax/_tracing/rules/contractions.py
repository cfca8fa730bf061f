"""Rules for sums of products: matrix products, convolutions, sums over axes."""

import dataclasses
from collections.abc import Sequence

from dcjax._tracing.rules.elementwise import product_of
from dcjax._tracing.rules.registry import register_rule
from dcjax._tracing.unify import Conflict, Size, Term, repeat, scale
from dcjax._tracing.value import Axis, Context, Equation, Inseparable, Value, refuse_own, together

Label = int | str


def _contract(
    context: Context,
    equation: Equation,
    operands: Sequence[tuple[Value, Sequence[Label]]],
    kept: Sequence[Label],
) -> Value:
    """Sum of products over labelled axes: `operands` are arrays with a label for each axis.

    Labels that are not `kept` are summed over. Where blocks tie a summed axis to a kept one, each
    sub-network sums its own; where nothing is left to tell them apart, the sub-networks are merged.
    """
    values = [value for value, _ in operands]
    axes = {label: a for v, labels in operands for a, label in zip(v.axes, labels, strict=True)}
    spreads = [frozenset(labels[i] for i in context.spread(v)) for v, labels in operands]
    varying = frozenset().union(*spreads)
    for label, axis in axes.items():
        if label not in kept and label not in varying and context.grows(axis):
            raise Inseparable(
                "it sums K times as many equal entries in the global network",
                "sum before the array is broadcast to the channels",
            )
    classes = together(*spreads)
    merged = [c for c in classes if not c & frozenset(kept)]
    if len(classes) > 1:
        raise Inseparable(
            "it mixes the channels of different sub-networks",
            "contract only within a sub-network's own channels, heads or groups",
        )
    _refuse_mixed(context, axes, spreads, frozenset(kept))
    result = product_of(values)
    if result.own and any(context.grows(axes[label]) for label in kept):
        raise refuse_own(next(v for v in values if v.own), "it meets the sub-networks' channels")
    for value, labels in zip(values, spreads, strict=True):
        if merged and value.own and not labels & merged[0]:
            raise refuse_own(value, "the sub-networks are merged here with their own factors")
    if merged:
        result = dataclasses.replace(
            result, own=context.merge(equation, values, result.power), power=0
        )
        if any(context.grows(axes[label]) for label in kept):
            raise refuse_own(result, "a mean is spread over the sub-networks' channels")
    return result.with_axes(Axis(axes[k].term, k not in varying) for k in kept)


def _refuse_mixed(
    context: Context,
    axes: dict[Label, Axis],
    spreads: Sequence[frozenset[Label]],
    kept: frozenset[Label],
) -> None:
    """Entries that all sub-networks share (the image beside features) belong to no block.

    A kernel may take them in. It must not give them out: there the global network would add up what
    the sub-networks compute apart. Nor may they stand between two kernels that are multiplied.
    """
    mixed = {k for k, axis in axes.items() if context.orders.is_mixed(axis.term)}
    for labels in spreads:
        given_out = labels & kept
        if labels - kept and given_out and given_out <= mixed:
            raise Inseparable(
                "the number of its results does not grow K-fold",
                "let every width be K times as large in the global network",
            )
    for label in mixed - kept:
        if sum(label in labels and len(labels) > 1 for labels in spreads) > 1:
            raise Inseparable(
                "two kernels are multiplied over entries that all sub-networks share",
                "apply them to the features one after the other",
            )


@register_rule("dot_general")
def _dot_general(context: Context, equation: Equation, left: Value, right: Value) -> Value:
    (lc, rc), (lb, rb) = equation.same("dimension_numbers")
    l_labels = list(range(len(left.axes)))
    r_labels = [len(l_labels) + i for i in range(len(right.axes))]
    for i, j in (*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)):
        context.orders.unify(left.axes[i].term, right.axes[j].term)
        r_labels[j] = l_labels[i]
    kept = [
        *(l_labels[i] for i in lb),
        *(label for i, label in enumerate(l_labels) if i not in (*lc, *lb)),
        *(label for j, label in enumerate(r_labels) if j not in (*rc, *rb)),
    ]
    return _contract(context, equation, [(left, l_labels), (right, r_labels)], kept)


@register_rule("conv_general_dilated")
def _conv(context: Context, equation: Equation, image: Value, kernel: Value) -> Value:
    numbers = equation.same("dimension_numbers")
    for name in ("padding", "window_strides", "lhs_dilation", "rhs_dilation"):
        equation.same(name)
    if equation.wide["batch_group_count"] != 1:
        raise Inseparable("batch groups are not known", "use feature_group_count")
    (batch, feature, *space), (out, per_group, *taps) = numbers.lhs_spec, numbers.rhs_spec
    for axis in (image.axes[i] for i in (batch, *space)):
        if context.grows(axis):
            raise Inseparable(
                "a batch or spatial axis grows with the width", "let only channels grow"
            )
    if any(context.grows(kernel.axes[i]) for i in taps):
        raise Inseparable("the kernel's height or width grows", "let only channels grow")
    groups = Size(equation.narrow["feature_group_count"], equation.wide["feature_group_count"])
    features = image.axes[feature].term, kernel.axes[per_group].term, kernel.axes[out].term
    _match_groups(context, groups, *features)
    # With groups that grow, a group's features belong to one sub-network, and so do its results:
    # the image's features and the kernel's results are then one axis.
    image_labels = _labelled(numbers.lhs_spec, "batch", "out" if groups.grows else "in")
    kernel_labels = _labelled(numbers.rhs_spec, "out", "in")
    kept = _labelled(numbers.out_spec, "batch", "out")
    operands = [(image, image_labels), (kernel, kernel_labels)]
    result = _contract(context, equation, operands, kept)
    axes = list(result.axes)
    for i in numbers.out_spec[2:]:
        axes[i] = context.fixed(equation.out_sizes[0][i])
    axes[numbers.out_spec[1]] = Axis(kernel.axes[out].term, result.axes[numbers.out_spec[1]].const)
    return result.with_axes(axes)


def _labelled(spec: Sequence[int], *names: str) -> list[str]:
    """A label for each axis, from a convolution's spec: two named axes, then the spatial ones."""
    labels = dict(zip(spec, (*names, *(f"space {i}" for i in range(len(spec) - 2))), strict=True))
    return [labels[i] for i in range(len(spec))]


def _match_groups(
    context: Context, groups: Size, features: Term, per_group: Term, results: Term
) -> None:
    """The orders of a grouped convolution's channels.

    Groups that do not grow are wider in the global network, g times the channels of a group; groups
    that grow with the width each belong to one sub-network.
    """
    unify, size = context.orders.unify, context.orders.size
    try:
        if not groups.grows:
            unify(features, repeat(groups.narrow, per_group))
            of_group = context.orders.fresh(size(results).over(groups.narrow))
            unify(results, repeat(groups.narrow, of_group))
            return
        group = context.orders.fresh(groups)
        unify(features, scale(group, size(features).narrow // groups.narrow))
        unify(results, scale(group, size(results).narrow // groups.narrow))
    except Conflict as conflict:
        if groups == Size(1, 1):
            raise
        raise Inseparable(
            f"its {groups} groups straddle sub-networks ({conflict})",
            "scale feature_group_count with the width, or keep it the same",
        ) from conflict


@register_rule("reduce_sum")
def _reduce_sum(context: Context, equation: Equation, value: Value) -> Value:
    labels = list(range(len(value.axes)))
    kept = [label for label in labels if label not in equation.same("axes")]
    return _contract(context, equation, [(value, labels)], kept)
