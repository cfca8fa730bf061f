"""Networks whose layer norms act within groups of channels, one group for each sub-network."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from dcjax._checks import check_subnets
from dcjax._linen.under import (
    Call,
    bare,
    check_known,
    check_module,
    checked_keep,
    how_of,
    keeps,
    trace_call,
    under,
)

M = TypeVar("M", bound=nn.Module)


def grouped(network: M, subnets: int, *, keep: Sequence[str] = ()) -> M:
    """Return the network whose layer norms act within each of K groups of the channels.

    A LayerNorm over all channels mixes what the sub-networks computed, and cannot be composed. In
    the grouped network each group g of C/K channels has its own statistics,

        y_c = γ_c (x_c − μ_g) / √(σ_g² + ε) + β_c,   μ_g, σ_g² over the channels of group g,

    which are those of sub-network g's own LayerNorm: the sub-networks are plain, narrow networks.
    RMSNorm is treated in the same way. `nn.GroupNorm(num_groups=n)` gets n groups within each of
    the K. The variables have the names, shapes and initial values of those of `network`.

    Args:
      network: the global network, a Flax Linen module.
      subnets: K ≥ 1, the number of groups. K = 1 gives the network itself.
      keep: paths of modules whose norms stay as they are, such as `"Block_0/GroupNorm_1"`; they
        may hold wildcards. For norms over channels that do not grow with the width, and for group
        norms whose number of groups does.

    Returns:
      A module of a class that inherits the network's. `decompose` gives its plain sub-network.

    Raises:
      ValueError: K is below 1. When the network is called: K does not divide the channels of a
        norm, or a norm has no axis of channels; names the norm's path. When it is initialised:
        `keep` names no module with a norm.
      TypeError: the network is not a Flax Linen module, or another argument has another type.

    >>> import dcjax, flax.linen as nn, jax
    >>> class Net(nn.Module):
    ...     width: int
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(10)(nn.relu(nn.LayerNorm()(nn.Dense(self.width)(x))))
    >>> network, x = dcjax.grouped(Net(width=32), 4), jax.numpy.ones((2, 6))
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), x)
    >>> dcjax.verify(network, stacked, x).error < 1e-5
    True
    >>> dcjax.decompose(network, 4) == Net(width=8)
    True

    References:
      J. L. Ba, J. R. Kiros, G. E. Hinton, Layer normalization, arXiv 1607.06450.
      B. Zhang, R. Sennrich, Root mean square layer normalization, NeurIPS 2019.
    """
    check_module(network)
    subnets, keep = check_subnets(subnets), checked_keep(keep)
    if groups_of(network) is not None:
        raise ValueError(f"the network is grouped already, {groups_of(network)}")
    if subnets == 1:
        return network
    around = getattr(how_of(network), "around", lambda network: network)  # narrowable goes outside
    inner = bare(network) if hasattr(how_of(network), "around") else network
    return around(under(inner, Groups(subnets, keep)))


@dataclasses.dataclass(frozen=True)
class Groups:
    """The setting of a grouped network: norms act within groups, but for those to keep."""

    count: int
    keep: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"in {self.count} groups"

    def holds(self, path: str) -> bool:
        """Return whether the norm at this path acts within groups."""
        return not keeps(self.keep, path)

    def interceptor(self, call: Call) -> Callable[..., Any]:
        """Return the interceptor that normalises within groups."""
        network = call.network
        if self.keep and call.method == "__call__" and network.scope and network.is_initializing():
            check_known(self.keep, _norms(call), "with norms")

        def intercept(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
            # The method itself, which a subclass's own __call__ may call: Flax's, or another's.
            norm = _NORMS.get(context.orig_method.func)
            if norm is None or not self.holds(path := call.path(context.module)):
                return run(*args, **kwargs)
            return norm(self.count, path, run, context.module, *args, **kwargs)

        return intercept


def groups_of(network: Any) -> Groups | None:
    """Return the groups of a network that `grouped` returned (also one that is narrowable)."""
    hows = (vars(cls).get("_dcjax_how") for cls in type(network).__mro__)
    return next((how for how in hows if isinstance(how, Groups)), None)


def regrouped(network: Any, subnets: int, decompose: Callable[[Any], Any]) -> Any:
    """Return the sub-network of a grouped network: plain if it holds one group."""
    groups: Groups = how_of(network)
    if groups.count % subnets:
        raise ValueError(
            f"the network is grouped for {groups.count} sub-networks, which {subnets} do not "
            f"divide: take dcjax.grouped(network, {subnets})"
        )
    return grouped(decompose(bare(network)), groups.count // subnets, keep=groups.keep)


def in_one_group(network: Any, subnet: Any) -> Any:
    """Return a plain sub-network with the operations of its grouped network, in one group.

    The results are the same, bit for bit, but now both networks' traces have the same operations.
    """
    groups = groups_of(network)
    if groups is None or groups_of(subnet) is not None:
        return subnet
    return under(subnet, Groups(1, groups.keep))


def _norms(call: Call) -> list[str]:
    """Return the paths of the network's norms, which `nn.jit` would hide from a single trace."""
    network, paths = call.network, {}
    while how_of(network) is not None:
        network = bare(network)

    def intercept(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.orig_method.func in _NORMS:
            paths["/".join(context.module.path)] = None
        return run(*args, **kwargs)

    trace_call(network, call, intercept)
    return list(paths)


def _layer_norm(
    groups: int, path: str, run: Any, module: Any, x: Array, *, mask: Any = None
) -> Array:
    """Run the module's own code on the input with the channels' axis split: (…, C) → (…, G, C/G).

    The module's axes are set to match, and its parameters, which stay whole, are split likewise.
    """
    reduced = {axis % x.ndim for axis in _axes(module.reduction_axes)}
    features = sorted(axis % x.ndim for axis in _axes(module.feature_axes))
    axis = features[-1]
    if axis not in reduced:
        return run(x, mask=mask)  # each channel by itself, as in instance norm
    whole = tuple(x.shape[i] for i in features)
    _check_channels(f"{path} normalises", x.shape[axis], groups)
    split = (*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
    if mask is not None:
        mask = jnp.broadcast_to(mask, x.shape).reshape(split)
    own = module.param

    def param(name: str, init: Any, shape: Sequence[int], *args: Any, **kwargs: Any) -> Array:
        return own(name, init, whole, *args, **kwargs).reshape(shape)

    with _overriding(
        module,
        param=param,
        reduction_axes=tuple(i if i < axis else i + 1 for i in sorted(reduced)),
        feature_axes=(*features, axis + 1),
    ):
        return run(x.reshape(split), mask=mask).reshape(x.shape)


def _group_norm(
    groups: int, path: str, run: Any, module: Any, x: Array, *, mask: Any = None
) -> Array:
    """Run the module with as many groups of channels as the sub-networks' have together."""
    if module.num_groups is None:  # a fixed size: the number grows with the width
        return run(x, mask=mask)
    together = groups * module.num_groups
    _check_channels(f"{path} has {groups} × {module.num_groups} groups of", x.shape[-1], together)
    with _overriding(module, num_groups=together):
        return run(x, mask=mask)


# By the function itself, not by the class: a subclass may run it in a __call__ of its own.
_NORMS = {
    inspect.unwrap(norm.__call__): within
    for norm, within in (
        (nn.LayerNorm, _layer_norm),
        (nn.RMSNorm, _layer_norm),
        (nn.GroupNorm, _group_norm),
    )
}


def _axes(axes: Any) -> tuple[int, ...]:
    return tuple(axes) if isinstance(axes, Iterable) else (axes,)


def _check_channels(what: str, channels: int, groups: int) -> None:
    if channels % groups:
        raise ValueError(
            f"{what} {channels} channels, which {groups} groups do not divide: expected a multiple "
            f"of {groups}. If these channels, or these groups, are not to be divided among the "
            f'sub-networks, name the module in dcjax.grouped(…, keep=("{what.split()[0]}",))'
        )


@contextmanager
def _overriding(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Set attributes of a module, which Flax freezes, while a method of it runs."""
    own = {name: vars(module)[name] for name in attributes if name in vars(module)}
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
    try:
        yield
    finally:
        for name in attributes:
            object.__delattr__(module, name)
        for name, value in own.items():
            object.__setattr__(module, name, value)
