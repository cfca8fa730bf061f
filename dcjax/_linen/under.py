"""Networks whose modules run under an interceptor: the same network, with the same variables.

Flax tells an interceptor of every method call of every module. To run a network under one, its
class gets a subclass of the same name: fields, methods, names of parameters and module paths stay.
(A module that wraps the network would add a scope to every path, and would lack its methods.)
"""

import contextvars
import dataclasses
import fnmatch
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import flax.linen as nn
import jax

from dcjax._checks import shown

M = TypeVar("M", bound=nn.Module)
Interceptor = Callable[..., Any]
_running: contextvars.ContextVar[tuple["How", ...]] = contextvars.ContextVar("running", default=())


@runtime_checkable
class How(Protocol):
    """A setting that a network runs under: static data, hashable, compared by its value."""

    def interceptor(self, call: "Call") -> Interceptor | None:
        """Return the interceptor (see `nn.intercept_methods`) for a call of the network."""
        ...


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a network: its module, bound to variables, the method's name, and its arguments."""

    network: nn.Module
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def path(self, module: nn.Module) -> str:
        """Return a module's path within the network, such as `Block_0/Dense_1`."""
        return "/".join(module.path[len(self.network.path) :])


def under(network: M, how: How, **methods: Callable[..., Any]) -> M:
    """Return the network that runs under `how`, and has more methods."""
    return _remade(network, _class(type(network), how, **methods))


def how_of(network: Any) -> Any:
    """Return what a network runs under, or None."""
    return vars(type(network)).get("_dcjax_how")


def bare(network: Any) -> Any:
    """Return the network without what it runs under (the outermost)."""
    return _remade(network, type(network).__bases__[0])


def _remade(network: Any, cls: Any) -> Any:
    fields = {f.name: getattr(network, f.name) for f in dataclasses.fields(network) if f.init}
    return cls(**{**fields, "parent": None})


@functools.cache  # so that equal networks have one class, and jit traces them once
def _class(cls: Any, how: How, **methods: Callable[..., Any]) -> Any:
    @nn.nowrap
    def call(self: Any, fun: Any, args: Any, kwargs: Any) -> Any:
        run = functools.partial(cls._call_wrapped_method, self, fun, args, kwargs)
        if how in _running.get():  # a call from within: the interceptor is there already
            return run()
        interceptor = how.interceptor(Call(self, fun.__name__, args, kwargs))
        if interceptor is None:
            return run()
        token = _running.set((*_running.get(), how))
        try:
            with nn.intercept_methods(traced_apart(interceptor, repr(how))):
                return run()
        finally:
            _running.reset(token)

    def text(self: Any) -> str:
        return f"{how}: {cls.__repr__(self)}"

    @nn.nowrap
    def reduce(self: Any, protocol: Any) -> Any:  # pickle would look for the class by its name
        return functools.partial(under, **methods), (bare(self), how)

    namespace = {"_dcjax_how": how, "_call_wrapped_method": call, "__repr__": text, **methods}
    namespace["__reduce_ex__"] = reduce
    namespace |= {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls)(cls.__name__, (cls,), namespace)


def traced_apart(interceptor: Interceptor, mark: str) -> Interceptor:
    """Keep the interceptor's traces of `nn.jit` modules apart from those of other networks.

    `nn.jit` takes modules with equal fields for the same, wherever they are. It compares the flags
    of their scopes, too.
    """

    def intercept(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if (scope := context.module.scope) is not None:
            scope.flags = scope.flags.copy({mark: "/".join(scope.path)})
        return interceptor(run, args, kwargs, context)

    return intercept


def keeps(keep: Iterable[str], path: str) -> bool:
    """Return whether `keep` names a module or one that it lies within."""
    parts = path.split("/")
    above = ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(p, name) for p in above for name in keep)


def check_known(keep: Iterable[str], paths: Iterable[str], kind: str) -> None:
    """Refuse names in `keep` that name none of the modules at these paths; list both."""
    known = list(paths)
    unknown = [name for name in keep if not any(keeps([name], path) for path in known)]
    if unknown:
        raise ValueError(
            f"keep names {', '.join(unknown)}, but the modules {kind} are "
            f"{', '.join(known) or 'none'}"
        )


_tracings = itertools.count()


def trace_call(network: nn.Module, call: Call, interceptor: Interceptor) -> None:
    """Trace a call of another network with the same arguments, under an interceptor."""

    def initialise() -> Any:
        names = ("params", *getattr(call.network.scope, "rngs", ()))
        keys = {name: jax.random.key(0) for name in names}
        return network.init(keys, *call.args, method=call.method, **call.kwargs)

    with nn.intercept_methods(traced_apart(interceptor, f"tracing {next(_tracings)}")):
        jax.eval_shape(initialise)


def check_module(network: Any) -> None:
    """Raise a TypeError unless the network is an instance of a Flax Linen module."""
    if not isinstance(network, nn.Module):
        raise not_a_module(network)


def not_a_module(network: Any) -> TypeError:
    """Return the error for a network that is not an instance of a Flax Linen module."""
    a_class = isinstance(network, type) and issubclass(network, nn.Module)
    remedy = (
        f"make an instance, {network.__name__}(…)"
        if a_class
        else "networks of NNX, Equinox, Haiku and plain functions go to dcjax.layout_of_functions"
    )
    return TypeError(
        f"the network must be an instance of a Flax Linen module, got {shown(network)}; {remedy}"
    )


def checked_keep(keep: Any) -> tuple[str, ...]:
    """Return the paths of modules as a tuple."""
    names = (keep,) if isinstance(keep, str) else keep
    if not (isinstance(names, Sequence) and all(isinstance(name, str) for name in names)):
        raise TypeError(f'keep must be paths of modules, such as ("Dense_2",), got {shown(keep)}')
    return tuple(names)
