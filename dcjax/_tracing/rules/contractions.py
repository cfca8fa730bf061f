"""Rules for sums of products: matrix products, convolutions, sums over axes."""

import dataclasses
from collections.abc import Sequence

from dcjax._tracing.errors import NARROWABLE, Inseparable
from dcjax._tracing.rules.elementwise import product_of, refuse_mean
from dcjax._tracing.rules.registry import register_rule
from dcjax._tracing.unify import Conflict, Size, Term, repeat, scale
from dcjax._tracing.value import Axis, Context, Equation, Value, are_apart, mean_refused

Label = int | str
Labels = frozenset[Label]


def _contract(
    context: Context,
    equation: Equation,
    operands: Sequence[tuple[Value, Sequence[Label]]],
    kept: Sequence[Label],
) -> Value:
    """Sum products of `operands`, arrays with a label for each axis, over all labels but `kept`.

    Where blocks tie a summed axis to a kept one, each sub-network sums within its block. Where no
    kept axis tells the sub-networks apart, they are merged.
    """
    values = [value for value, _ in operands]
    axes = {label: a for v, labels in operands for a, label in zip(v.axes, labels, strict=True)}
    varying = [frozenset(labels[i] for i in context.varying_axes(v.axes)) for v, labels in operands]
    varying_labels = Labels().union(*varying)
    for label, axis in axes.items():
        if label not in kept and label not in varying_labels and context.grows(axis):
            raise Inseparable(
                "it sums K times as many equal entries in the global network",
                "sum before the array is broadcast to the channels",
            )
    if are_apart(varying):
        raise Inseparable(
            "it mixes the channels of different sub-networks",
            "contract only within a sub-network's channels, heads or groups",
        )
    mixed = frozenset(k for k, axis in axes.items() if context.orders.is_mixed(axis.term))
    _refuse_mixed(mixed, varying, frozenset(kept))
    result = product_of(values)
    if varying_labels and not varying_labels & frozenset(kept):
        for value, labels in zip(values, varying, strict=True):
            if value.averaged_because and not labels:
                raise mean_refused(value, "each sub-network has another factor in this merge")
        merged_at = context.merge(equation, values, result.power)
        result = dataclasses.replace(result, averaged_because=merged_at, power=0)
    refuse_mean(context, [result], [axes[label] for label in kept])
    return result.with_axes(Axis(axes[k].term, k not in varying_labels) for k in kept)


def _refuse_mixed(mixed: Labels, varying: Sequence[Labels], kept: Labels) -> None:
    """Refuse entries that all sub-networks share (the image beside features) where they mix blocks.

    A kernel may take them in. It must not give them out: there the global network would add up what
    the sub-networks compute apart. Nor may they stand between two kernels that are multiplied.
    """
    for labels in varying:
        given_out = labels & kept
        if labels - kept and given_out and given_out <= mixed:
            raise Inseparable(
                "the number of its results does not grow K-fold",
                "let every width be K times as large in the global network "
                f"({NARROWABLE} for widths that are numbers in the code)",
            )
    for label in mixed - kept:
        if sum(label in labels and len(labels) > 1 for labels in varying) > 1:
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
    if equation.same("batch_group_count") != 1:
        raise Inseparable("batch groups are not known", "use feature_group_count")
    (batch, feature, *space), (out, per_group, *taps) = numbers.lhs_spec, numbers.rhs_spec
    others = [*(image.axes[i] for i in (batch, *space)), *(kernel.axes[i] for i in taps)]
    if any(map(context.grows, others)):
        raise Inseparable("a batch or spatial axis grows with the width", "let only channels grow")
    groups = Size(*equation.both("feature_group_count"))
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
    _, channels, *pixels = numbers.out_spec
    axes[channels] = Axis(kernel.axes[out].term, axes[channels].const)
    for i in pixels:
        axes[i] = context.fixed(equation.out_sizes[0][i])
    return result.with_axes(axes)


def _labelled(spec: Sequence[int], *names: str) -> list[str]:
    """Return a label for each axis of a convolution's spec: two names, then the spatial axes."""
    labels = dict(zip(spec, (*names, *(f"space {i}" for i in range(len(spec) - 2))), strict=True))
    return [labels[i] for i in range(len(spec))]


def _match_groups(
    context: Context, groups: Size, features: Term, per_group: Term, results: Term
) -> None:
    """Unify the orders of a grouped convolution's channels.

    Groups whose number is fixed have g times the channels of a group in the global network. Groups
    whose number grows with the width belong to one sub-network each.
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
