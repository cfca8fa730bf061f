"""The layout of networks that are no Flax Linen modules: two functions and their parameters."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dcjax._checks import array_fault, check_subnets, leaves_of, shown
from dcjax._layout.layout import Layout
from dcjax._tracing.solve import identity_layout, separate


def layout_of_functions(
    narrow: Callable[..., Any],
    wide: Callable[..., Any],
    narrow_args: tuple[PyTree, ...],
    wide_args: tuple[PyTree, ...],
    subnets: int,
) -> Layout:
    """The layout of any network in JAX: Flax NNX, Haiku, Equinox, plain functions.

    Traces both functions side by side, as `dcjax.layout` does for Linen modules. The first argument
    of each is its tree of variables, whose layout is returned; the others are inputs. An input's
    axis that is K times as long in the global network holds the sub-networks' inputs side by side.

    Leaves that the functions do not use, or that do not grow, are composed by the mean; where they
    are no floating-point numbers (counters, random keys), sub-network 0's are taken.

    Args:
      narrow: the sub-network, a function (variables, *inputs) -> outputs.
      wide: the global network, likewise.
      narrow_args: the sub-network's variables and inputs, arrays or `jax.ShapeDtypeStruct`s.
      wide_args: the global network's; the trees of variables have one structure.
      subnets: K ≥ 1.

    Returns:
      The layout; `dcjax.compose(tree, like=layout)` and `dcjax.stack(trees, like=layout)` take it.

    Raises:
      NotSeparableError: a `ValueError` that lists every operation which cannot be composed exactly.
      ValueError: the trees of variables differ in structure, or the inputs in number or rank.
      TypeError: a function cannot be called with its arguments, gives no arrays, or an argument has
        leaves that are no arrays; lists every such leaf.

    >>> import jax, dcjax
    >>> def network(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["head"]
    >>> def arrays(width):
    ...     shapes = {"hidden": (3, width), "head": (width, 2)}
    ...     params = {name: jax.ShapeDtypeStruct(s, "float32") for name, s in shapes.items()}
    ...     return params, jax.ShapeDtypeStruct((5, 3), "float32")
    >>> print(dcjax.layout_of_functions(network, network, arrays(4), arrays(8), 2))
    leaf    sub-network  global  rule   axes (K = 2)
    head    (4, 2)       (8, 2)  1/K    K×4 , 2
    hidden  (3, 4)       (3, 8)  block  3 , K×4
    """
    subnets = check_subnets(subnets)
    narrow_args = _arguments("narrow", narrow, narrow_args)
    wide_args = _arguments("wide", wide, wide_args)
    if subnets == 1:
        return identity_layout(wide_args[0])
    return separate(narrow, wide, narrow_args, wide_args, subnets).layout


def _arguments(name: str, function: Any, args: Any) -> tuple[PyTree, ...]:
    """A function's arguments, with Python's numbers as arrays."""
    if not callable(function):
        raise TypeError(f"{name} is a function (variables, *inputs), got {shown(function)}")
    if not isinstance(args, (tuple, list)) or not args:
        raise TypeError(f"{name}_args is a tuple (variables, *inputs), got {shown(args)}")
    try:
        inspect.signature(function).bind(*args)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} cannot be called with the {len(args)} arguments of {name}_args: {error}"
        ) from error
    faults = {
        "/".join((f"{name}_args[{i}]", *path)): array_fault(leaf, abstract=True)
        for i, arg in enumerate(args)
        for path, leaf in leaves_of(arg, f"{name}_args[{i}]").items()
    }
    wrong = [f"{path} {fault}" for path, fault in faults.items() if fault]
    if wrong:
        raise TypeError(
            "expected arrays or jax.ShapeDtypeStructs (close over what is none):\n  "
            + "\n  ".join(wrong)
        )
    return tuple(jax.tree.map(lambda x: x if hasattr(x, "shape") else jnp.asarray(x), args))
