"""Flax Linen networks: their layout, K sub-networks' variables, and their logits."""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import (
    InvalidRngError,
    ModifyScopeVariableError,
    ScopeParamNotFoundError,
    ScopeParamShapeError,
)
from jaxtyping import Array, PyTree, Shaped

from dcjax._checks import array_fault, array_of, check_key, check_subnets, leaves_of, shown
from dcjax._compose.stack import check_stacked, stack
from dcjax._compose.stacked import Stacked
from dcjax._layout.layout import Layout, path_of
from dcjax._linen.decompose import DEFAULT_FIELDS, decompose
from dcjax._linen.grouped import groups_of, in_one_group
from dcjax._linen.narrowable import check_results
from dcjax._linen.under import check_module
from dcjax._tracing.errors import NARROWABLE, NotSeparableError
from dcjax._tracing.solve import Separation, identity_layout, separate
from dcjax.samples import Samples, replicate


def layout(
    network: Any,
    subnets: int,
    x: Any,
    *,
    samples: Samples | None = None,
    fields: Sequence[str] = DEFAULT_FIELDS,
    calls: Sequence[Mapping[str, Any]] = (),
    **kwargs: Any,
) -> Layout:
    """Return the layout of a Flax network: where each sub-network's entries stand in every leaf.

    Traces the sub-network and the global network side by side and follows the order of the channels
    through every operation. Costs tracing only; no array of the network's size is allocated.

    A head is found where its kernel merges the sub-networks, so every head must be used by a call
    that is traced. `calls` are further calls: each names what differs from the first call, which
    takes `x` and `kwargs`. They trace a head that serves in training only
    (`calls=[{"train": True}]`) and other methods (`calls=[{"method": "decode", "x": latents}]`).
    `nn.Dropout` does nothing in them; batch norm needs `"mutable": ["batch_stats"]`.

    Args:
      network: the global network.
      subnets: K ≥ 1.
      x: a batch of images before `samples`, (N, H, W, C), or its `jax.ShapeDtypeStruct`; or a tree
        of arrays (a graph, a dict), which all sub-networks see.
      samples: what each sub-network sees (`dcjax.samples`); default `replicate(K)`.
      fields: the module's fields that carry width (see `decompose`).
      calls: further calls, dicts of keyword arguments; `"x"` gives another first argument.
      **kwargs: what else the network's call needs (`train=`, `method=`, masks, `rngs=`).

    Returns:
      A `Layout`; printing it gives a table.

    Raises:
      NotSeparableError: a `ValueError` that lists every operation which cannot be composed exactly,
        and every leaf that grows and that no call uses.
      TypeError: an argument has another type, or the network gives no arrays.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> layout = dcjax.layout(network, 4, jax.ShapeDtypeStruct((1, 16, 16, 3), "float32"))
    >>> layout.subnets
    4
    """
    both = networks(network, subnets, samples, fields, calls, kwargs)
    return traced_layout(both, [_abstract(x) for x in both.inputs(x)])


def init(
    network: Any,
    subnets: int,
    key: Array,
    x: PyTree[Shaped[Array | np.ndarray, "..."]],
    *,
    samples: Samples | None = None,
    fields: Sequence[str] = DEFAULT_FIELDS,
    calls: Sequence[Mapping[str, Any]] = (),
    **kwargs: Any,
) -> Stacked:
    """Initialise K sub-networks independently, and return their variables, stacked.

    Sub-network k is initialised with `jax.random.fold_in(key, k)`, so that it does not depend on
    how many there are, as `subnet.init(key_k, samples.split(x)[k])`.

    Args:
      network: the global network, a Flax Linen module.
      subnets: K ≥ 1.
      key: a random key.
      x: a batch of images, or a tree of arrays (its values do not matter to most networks).
      samples: what each sub-network sees (`dcjax.samples`); default `replicate(K)`.
      fields: the module's fields that carry width (see `decompose`).
      calls: further calls, as in `layout`; variables that only they use are initialised too.
      **kwargs: what else the network's call needs.

    Returns:
      A `Stacked`, with the layout in it: leaves of shape (K, …).

    Raises:
      NotSeparableError: the network cannot be composed; nothing has been allocated by then.
      ValueError: K does not divide a width.
      TypeError: an argument has another type.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> stacked["params"]["head"]["bias"].tree.shape
    (4, 10)
    """
    check_key(key, "the order of arguments is init(network, K, key, x)")
    both = networks(network, subnets, samples, fields, calls, kwargs)
    inputs = [input_of("x", x) for x in both.inputs(x)]
    found = traced_layout(both, list(map(_abstract, inputs)))
    # XLA takes seconds to optimise each shape of random numbers, which are drawn but once.
    options = {"xla_backend_optimization_level": 1}
    initialise = jax.jit(_init(both.subnet, both.calls), compiler_options=options)
    own = enumerate(zip(*map(both.split, inputs), strict=True))
    return stack([initialise(jax.random.fold_in(key, k), *xs) for k, xs in own], like=found)


def apply(
    subnet: Any, stacked: Stacked, xs: PyTree[Shaped[Array, "K ..."]], **kwargs: Any
) -> Shaped[Array, "K N C"]:
    """Return all sub-networks' logits on their samples.

    Args:
      subnet: the sub-network, `decompose(network, K)`.
      stacked: the K sub-networks' variables.
      xs: what each sub-network sees, `samples.split(x)`, or a tree of arrays (K, …).
      **kwargs: what else the network's call needs.

    Returns:
      Logits (K, N, C), those of `subnet.apply(stacked[k], xs[k])`, stacked.

    Raises:
      ValueError: `xs`, or a leaf of `stacked`, has another leading axis than K, or one is missing.
      TypeError: an argument has another type, or the network gives anything but one array.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> x = jax.numpy.ones((2, 16, 16, 3))
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), x)
    >>> dcjax.apply(dcjax.decompose(network, 4), stacked, dcjax.samples.replicate(4).split(x)).shape
    (4, 2, 10)
    """
    check_module(subnet)
    check_stacked(stacked)
    if not _is_collections(stacked.tree):
        raise TypeError(
            "expected variables as a dict of collections, such as {'params': {…}}, got "
            f"{shown(stacked)}"
        )
    # Flax takes a missing bias for None and computes without it.
    leaves = leaves_of(stacked.tree, "stacked tree")
    missing = ["/".join(path) for path in stacked.layout.by_path if path not in leaves]
    if missing:
        raise ValueError(
            f"the variables lack what the layout has: {', '.join(missing)}; give all of them, as "
            "dcjax.init returns them"
        )
    xs = input_of("xs", xs)
    shapes = [leaf.shape for leaf in jax.tree.leaves(xs)]
    if any(shape[:1] != (len(stacked),) for shape in shapes):
        raise ValueError(
            f"expected xs of shape ({len(stacked)}, N, …), the samples of each of the "
            f"{len(stacked)} sub-networks, got {', '.join(map(str, shapes))}"
        )
    # Unrolled: convolutions under vmap or in a loop's body are several times slower on a CPU.
    own = [jax.tree.map(lambda leaf, k=k: leaf[k], xs) for k in range(len(stacked))]
    pairs = zip(stacked, own, strict=True)
    try:
        logits = [subnet.apply(variables, x, **kwargs) for variables, x in pairs]
    except (ScopeParamShapeError, ScopeParamNotFoundError) as error:
        error.add_note(
            "dcjax.apply takes the sub-network that the variables are of, dcjax.decompose(network, "
            f"{len(stacked)})."
        )
        raise
    if array_fault(logits[0]):
        raise TypeError(
            f"apply stacks one array of logits from each sub-network, but the network's result "
            f"{array_fault(logits[0])}: call subnet.apply(stacked[k], xs[k]) for other results"
        )
    return jnp.stack(logits)


class Networks(NamedTuple):
    """A network, its sub-network and number of sub-networks, and what the networks are called with.

    Attributes:
      samples: gives what each sub-network, and the global network, sees of a batch of images.
      calls: the keyword arguments of each call; those of further calls may hold another `x`.
    """

    network: Any
    subnet: Any
    subnets: int
    samples: Samples
    calls: tuple[dict[str, Any], ...]

    def inputs(self, x: Any) -> list[Any]:
        """Return the first argument of each call."""
        return [call.get("x", x) for call in self.calls]

    def split(self, x: PyTree) -> list[PyTree]:
        """Return what each sub-network sees of an input; all see the whole of a tree."""
        if not _is_tree(x):
            return list(self.samples.split(x))
        if self.samples.name != "replicate":
            raise ValueError(f"{self.samples.name} splits one array of images, got {shown(x)}")
        return [x] * self.subnets

    def join(self, x: PyTree) -> PyTree:
        """Return what the global network sees of an input."""
        return x if _is_tree(x) else self.samples.join(x)


def networks(
    network: Any,
    subnets: int,
    samples: Samples | None,
    fields: Sequence[str],
    calls: Sequence[Mapping[str, Any]],
    kwargs: dict[str, Any],
) -> Networks:
    """Decompose the network, and check the arguments against each other."""
    check_module(network)
    subnets = check_subnets(subnets)
    subnet = decompose(network, subnets, fields)
    samples = samples_or_replicate(samples, subnets)
    if samples.subnets != subnets:
        raise ValueError(
            f"the samples are for {samples.subnets} sub-networks, but the network is split into "
            f"{subnets}: give dcjax.samples.make({samples.name!r}, {subnets})"
        )
    named = isinstance(calls, (list, tuple)) and all(
        isinstance(call, Mapping) and all(isinstance(name, str) for name in call) for call in calls
    )
    if not named:
        raise TypeError(
            'calls must be a list of dicts of keyword arguments, such as [{"train": True}]; got '
            f"{shown(calls)}"
        )
    every = (kwargs, *(kwargs | {**call} for call in calls))
    for call in every:
        _check_call(network, call)
    return Networks(network, subnet, subnets, samples, every)


def samples_or_replicate(samples: Any, subnets: int) -> Samples:
    """Return the samples, `replicate(K)` for None; raise a `TypeError` for anything else."""
    if samples is None:
        return replicate(subnets)
    if not isinstance(samples, Samples):
        raise TypeError(
            "samples must be one of dcjax.samples for K sub-networks, such as "
            f"dcjax.samples.replicate(K), got {shown(samples)}"
        )
    return samples


def traced_layout(both: Networks, inputs: Sequence[Any]) -> Layout:
    """Return the layout for the first arguments of the calls, or for their shapes and dtypes."""
    if both.subnets > 1:
        return separation(both, inputs).layout
    initialise = _init(both.network, both.calls)
    return identity_layout(jax.eval_shape(initialise, jax.random.key(0), *inputs))


def separation(both: Networks, inputs: Sequence[Any]) -> Separation:
    """Trace both networks; return what the tracer knows of every array in between (K ≥ 2)."""
    narrow_xs = [jax.eval_shape(lambda x: both.split(x)[0], x) for x in inputs]
    wide_xs = [jax.eval_shape(both.join, x) for x in inputs]
    key = jax.random.key(0)
    subnet = in_one_group(both.network, both.subnet)
    # The global network first: what is wrong there is wrong without dcjax, too.
    wide = jax.eval_shape(_init(both.network, both.calls), key, *wide_xs)
    try:
        narrow = jax.eval_shape(_init(subnet, both.calls), key, *narrow_xs)
    except Exception as error:
        error.add_note(
            f"This is dcjax's sub-network, decompose(network, {both.subnets}); the global one can "
            "be initialised. Whatever depends on the width has to divide with it: numbers of heads "
            "that are fields, nn.GroupNorm(num_groups=None, group_size=…), a method "
            f"narrow(subnets) that says what the sub-network is, or {NARROWABLE} for widths that "
            "are numbers in the code."
        )
        raise
    try:
        found = separate(
            _apply(subnet, both.calls),
            _apply(both.network, both.calls),
            (narrow, *narrow_xs),
            (wide, *wide_xs),
            both.subnets,
        )
    except NotSeparableError as error:
        if groups_of(both.network) is not None:
            error.add_note(
                "The network is grouped. Norms over channels that do not grow with the width, and "
                "group norms whose number of groups does, are to stay as they are: name their "
                "paths in dcjax.grouped(network, K, keep=(…))."
            )
        raise
    narrow_results, wide_results = (computed(both, tree) for tree in found.results)
    check_results(both.network, narrow_results, wide_results)
    return found


def _is_collections(tree: Any) -> bool:
    """Return whether Flax takes the tree for a module's variables."""
    if not isinstance(tree, Mapping) or not all(isinstance(v, Mapping) for v in tree.values()):
        return False
    names = [*tree, *(name for collection in tree.values() for name in collection)]
    return all(isinstance(name, str) for name in names) and "params" not in tree.get("params", ())


def _check_call(network: Any, kwargs: dict[str, Any]) -> None:
    """Refuse arguments that the network's call does not take, and say where to give them."""
    call = kwargs.get("method") or type(network).__call__
    if not callable(call):  # the name of a method
        call = getattr(type(network), call)
    others = ("x", "rngs", "mutable", "method", "capture_intermediates")
    try:
        inspect.signature(call).bind(
            network, None, **{name: kwargs[name] for name in kwargs if name not in others}
        )
    except TypeError as error:
        raise TypeError(
            f"{type(network).__name__}'s call: {error}. Give its arguments, but for the first, by "
            "keyword, as for evaluation: dcjax.init(network, K, key, x, train=False, mask=mask)"
        ) from None


def _is_tree(x: Any) -> bool:
    """Return whether an input is a tree of arrays; lists and tuples are nested numbers."""
    leaves = leaves_of(x, "input")
    return type(x) not in (list, tuple) and bool(leaves) and () not in leaves


def input_of(name: str, x: Any) -> PyTree:
    """Return an input, an array or a tree of them, as JAX arrays."""
    if not _is_tree(x):
        return array_of(name, x)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: array_of("/".join((name, *path_of(path))), leaf), x
    )


def _abstract(x: Any) -> PyTree:
    """Return an input's shape and dtype, or the tree of them."""
    if _is_tree(x):
        return jax.tree.map(_abstract, x)
    if array_fault(x):
        raise TypeError(
            f"x must be an array or a tree of arrays, got {shown(x)}; pass other inputs of the "
            "network's call as keyword arguments"
        )
    return jax.eval_shape(lambda x: x, x)


def _init(network: Any, calls: Sequence[dict[str, Any]]) -> Callable[..., PyTree]:
    """Return a function of a key and the calls' inputs that initialises what any call uses."""

    def initialise(key: Array, *inputs: Any) -> PyTree:
        variables = {}
        for i, (call, x) in enumerate(zip(calls, inputs, strict=True)):
            others = {k: v for k, v in call.items() if k not in ("x", "rngs", "mutable")}
            rngs = {**call["rngs"], "params": key} if call.get("rngs") else key
            made = _call(network.init, rngs, x, further=i > 0, **others)
            variables = _joined(variables, made) if i else made
        return nn.meta.unbox(variables)  # of nn.with_partitioning: leaves are arrays here

    return initialise


def _joined(variables: PyTree, further: PyTree) -> PyTree:
    """Add to the variables of the earlier calls those that only a further call has."""
    if not (isinstance(variables, Mapping) and isinstance(further, Mapping)):
        return variables
    both = {k: _joined(v, further[k]) if k in further else v for k, v in variables.items()}
    kind: Any = type(variables)  # a dict, or one that Flax has frozen
    return kind({**further, **both})


def _apply(network: Any, calls: Sequence[dict[str, Any]]) -> Callable[..., Any]:
    """Return a function of the variables and the calls' inputs that makes all the calls."""
    others = [{k: v for k, v in call.items() if k != "x"} for call in calls]

    def one(i: int) -> Callable[..., Any]:
        return lambda variables, x: _call(network.apply, variables, x, further=i > 0, **others[i])

    if len(calls) == 1:
        return one(0)
    # In a jaxpr of its own each call can be told from the others: `verify` compares all layers.
    each = [jax.jit(one(i)) for i in range(len(calls))]
    return lambda variables, *inputs: [f(variables, x) for f, x in zip(each, inputs, strict=True)]


def computed(both: Networks, results: PyTree) -> list[Any]:
    """Return what the calls compute, without the variables that they renew (`mutable=`)."""
    each = [results] if len(both.calls) == 1 else results
    renews = [call.get("mutable", False) is not False for call in both.calls]
    return jax.tree.leaves([r[0] if more else r for r, more in zip(each, renews, strict=True)])


def _call(function: Callable[..., Any], *args: Any, further: bool, **kwargs: Any) -> Any:
    """Call the network; explain the errors of calls in training and of empty axes."""
    try:
        with nn.intercept_methods(_pass_dropout) if further else contextlib.nullcontext():
            return function(*args, **kwargs)
    except (ModifyScopeVariableError, InvalidRngError) as error:
        raise ValueError(
            "the network changes its variables or draws random numbers in this call, as in "
            "training; trace it in evaluation mode (train=False, deterministic=True, "
            "use_running_average=True, or your network's flag), or as one of the further calls, "
            f'such as calls=[{{"train": True, "mutable": ["batch_stats"]}}]. Flax says: {error}'
        ) from error
    except ZeroDivisionError as error:
        shapes = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(args[-1]))
        raise ValueError(
            "the network divides by zero in this call. The usual cause is an empty axis of x, here "
            f"of shape {shapes}, or a layer of width 0; expected at least 1"
        ) from error


def _pass_dropout(
    method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """Let `nn.Dropout` do nothing: the composed network would draw other random numbers."""
    if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
        return args[0] if args else kwargs["inputs"]
    return method(*args, **kwargs)
