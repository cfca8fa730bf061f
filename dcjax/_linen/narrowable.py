"""Networks whose widths are numbers in their code, made narrow module by module."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax

from dcjax._linen.grouped import Groups, groups_of, regrouped
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
Widths = dict[str, int | Sequence[int]]
# The fields of modules that carry width, in Flax and by its convention in others' modules.
WIDTHS = ("features", "feature_group_count", "num_groups")
WIDTHS += ("num_heads", "qkv_features", "out_features")


def narrowable(network: M, *, keep: Sequence[str] = ()) -> M:
    """Return the network with a method `narrow`, for widths that are numbers in its code.

    The sub-network runs the network's own code. What its modules' fields `features`,
    `feature_group_count`, `num_groups`, `num_heads`, `qkv_features` and `out_features` hold in the
    global network is divided by K there, except for the modules to keep, which are the heads. To
    know these numbers, a call of the sub-network first traces the global network on the same
    arguments; that costs time whenever the call is traced, and in each call outside of `jit`.

    Of a sequence of features the first is divided that K divides. A single group of a convolution
    stays one, and what is None stays None.

    Args:
      network: the global network, a Flax Linen module.
      keep: paths of the modules that keep their numbers, with everything in them, such as
        `"Dense_2"` or `"Decoder_0/head"`; they may hold wildcards.

    Returns:
      A module of a class that inherits the network's, with the same variables.

    Raises:
      ValueError: when a sub-network is called: K does not divide a number, or `keep` names no
        module; names each by its path.
      TypeError: the network is not a Flax Linen module, or another argument has another type.

    >>> import dcjax, flax.linen as nn, jax
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         x = nn.relu(nn.Dense(64)(x))
    ...         return nn.Dense(10)(x)
    >>> network, x = dcjax.narrowable(Net(), keep=("Dense_1",)), jax.numpy.ones((2, 6))
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), x)
    >>> jax.tree.map(jax.numpy.shape, stacked[0]["params"]["Dense_0"])
    {'bias': (16,), 'kernel': (6, 16)}
    """
    check_module(network)
    return under(network, Narrowable(checked_keep(keep)), narrow=_narrow)


@dataclasses.dataclass(frozen=True)
class Narrowable:
    """The setting of a narrowable network: the modules that keep their widths."""

    keep: tuple[str, ...]

    def __str__(self) -> str:
        return f"narrowable, keep={self.keep}"

    def interceptor(self, call: Call) -> None:
        """Return None: the global network runs as it is."""

    def around(self, network: M) -> M:
        """Make another network narrowable: groups go inside."""
        return narrowable(network, keep=self.keep)


def check_results(network: Any, narrow: Sequence[Any], wide: Sequence[Any]) -> None:
    """Refuse results of a narrowable network that are narrow: those of a head that is not kept."""
    how = how_of(network)
    if not (isinstance(how, Narrowable) and how.keep):
        return
    growing = [
        f"{n.shape} in a sub-network, {w.shape} in the global network"
        for n, w in zip(narrow, wide, strict=True)
        if n.shape[-1:] != w.shape[-1:]
    ]
    if growing:
        raise ValueError(
            f"the results grow with the width: {'; '.join(growing)}. Name the heads that give them "
            f"beside {', '.join(how.keep)} in dcjax.narrowable(network, keep=(…)), or nothing if "
            "the network has no heads"
        )


def _narrow(network: Any, subnets: int) -> Any:
    inner, groups = bare(network), groups_of(network)
    if groups is not None:
        inner = regrouped(inner, subnets, lambda plain: plain)
    return under(inner, Narrowed(subnets, how_of(network).keep, groups))


@dataclasses.dataclass(frozen=True)
class Narrowed:
    """The setting of a narrowable network's sub-network: K, and the modules to keep."""

    subnets: int
    keep: tuple[str, ...]
    groups: Groups | None  # those of the global network

    def __str__(self) -> str:
        return f"1/{self.subnets} as wide"

    def interceptor(self, call: Call) -> Callable[..., Any]:
        """Return the interceptor that gives every module its width."""
        widths = self._narrow(_recorded(call), call.method)

        def intercept(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
            # Also those in the fields: a cell is asked for its carry before any method is called.
            modules = [context.module] if context.module.scope is not None else []
            for module in (*modules, *_field_modules(context.module)):
                for name, width in widths.get(call.path(module), {}).items():
                    object.__setattr__(module, name, width)  # Flax freezes its modules
            return run(*args, **kwargs)

        return intercept

    def _narrow(self, recorded: dict[str, Widths], method: str) -> dict[str, Widths]:
        """Return the widths that the sub-network's modules have instead of the recorded ones."""
        if method == "__call__":
            check_known(self.keep, recorded, "with widths")
        divided = {
            path: {
                name: _divided(width, self.subnets)
                for name, width in widths.items()
                if self._grows(path, name, width)
            }
            for path, widths in recorded.items()
        }
        self._check(recorded, divided)
        return divided

    def _grows(self, path: str, name: str, width: Any) -> bool:
        if keeps(self.keep, path) or (name == "feature_group_count" and width == 1):
            return False
        # In a grouped network a norm has its number of groups in each sub-network.
        grouped = self.groups is not None and self.groups.holds(path)
        return not (name == "num_groups" and grouped)

    def _check(self, recorded: dict[str, Widths], divided: dict[str, Widths]) -> None:
        wrong = {
            path: [f"{path}.{name} = {recorded[path][name]}" for name in widths if not widths[name]]
            for path, widths in divided.items()
        }
        lines = [line for found in wrong.values() for line in found]
        heads = tuple(path for path, found in wrong.items() if found)
        if lines:
            raise ValueError(
                "\n  ".join([f"{self.subnets} sub-networks do not divide", *lines])
                + "\nIf these do not grow with the width, as heads do not, keep them: "
                f"dcjax.narrowable(network, keep={(*self.keep, *heads)!r}); otherwise let them be "
                f"multiples of {self.subnets}"
            )


def _recorded(call: Call) -> dict[str, Widths]:
    """Return the widths in the global network, by the paths of its modules."""
    recorded, whole = {}, []

    def intercept(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        path = "/".join(module.path)
        if isinstance(module, nn.MultiHeadDotProductAttention):
            whole.append(path)  # its layers follow from its own widths
        recorded.setdefault(path, _widths(module))
        return run(*args, **kwargs)

    trace_call(bare(call.network), call, intercept)
    return {
        path: widths
        for path, widths in recorded.items()
        if widths and not (keeps(whole, path) and path not in whole)
    }


def _widths(module: nn.Module) -> Widths:
    """Return the fields of a module that hold widths."""
    fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.init}
    flax = type(module).__module__.startswith("flax.")
    return {
        name: fields[name]
        for name in WIDTHS
        if _is_int(value := fields.get(name))
        or (flax and isinstance(value, Sequence) and all(map(_is_int, value)))
    }


def _field_modules(module: nn.Module) -> list[nn.Module]:
    """Return the modules in a module's fields that are bound to variables."""
    values = [getattr(module, f.name) for f in dataclasses.fields(module) if f.name != "parent"]
    modules = jax.tree.leaves(values, is_leaf=lambda value: isinstance(value, nn.Module))
    return [m for m in modules if isinstance(m, nn.Module) and m.scope is not None]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _divided(width: Any, subnets: int) -> Any:
    """Return a width divided by K, or None where K does not divide it."""
    if isinstance(width, int):
        return None if width % subnets else width // subnets
    at = next((i for i, size in enumerate(width) if size % subnets == 0), None)
    return None if at is None else (*width[:at], width[at] // subnets, *width[at + 1 :])
