"""The layout of two functions and their parameters, for networks that are not Linen modules."""

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
    """Return the layout of any network in JAX: Flax NNX, Haiku, Equinox, plain functions.

    Traces both functions side by side, as `dcjax.layout` does for Linen modules. The first argument
    of each is its tree of variables, whose layout is returned; the others are inputs. An input's
    axis that is K times as long in the global network holds the sub-networks' inputs side by side.

    Leaves that do not grow are composed by the mean. Unused leaves that are not floating point
    (counters, random keys) take sub-network 0's value. A floating-point leaf that grows must be
    used, since it may be a head's kernel: let the functions return what each call of the network
    gives, such as `(net(x, train=False), net(x, train=True))`.

    Args:
      narrow: the sub-network, a function `(variables, *inputs) -> outputs`.
      wide: the global network, likewise.
      narrow_args: the sub-network's variables and inputs, arrays or `jax.ShapeDtypeStruct` leaves.
      wide_args: the global network's; both trees of variables have the same structure.
      subnets: K ≥ 1.

    Returns:
      The layout; `dcjax.compose(tree, like=layout)` and `dcjax.stack(trees, like=layout)` take it,
      and `dcjax.verify_functions` compares the composed network with its sub-networks.

    Raises:
      NotSeparableError: a `ValueError` that lists every operation which cannot be composed exactly.
      ValueError: the trees of variables differ in structure, or the inputs in number or rank.
      TypeError: an argument has leaves that are not arrays (all are listed), or a function returns
        no arrays.

    >>> import jax, dcjax
    >>> def network(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["head"]
    >>> def arrays(width):
    ...     shapes = {"hidden": (3, width), "head": (width, 2)}
    ...     params = {name: jax.ShapeDtypeStruct(s, "float32") for name, s in shapes.items()}
    ...     return params, jax.ShapeDtypeStruct((5, 3), "float32")
    >>> print(dcjax.layout_of_functions(network, network, arrays(4), arrays(8), 2))
    leaf    sub-network  global  kind   axes (K = 2)
    head    (4, 2)       (8, 2)  1/K    K×4 , 2
    hidden  (3, 4)       (3, 8)  block  3 , K×4
    """
    subnets = check_subnets(subnets)
    narrow_args = arguments_of("narrow", narrow, narrow_args)
    wide_args = arguments_of("wide", wide, wide_args)
    if subnets == 1:
        return identity_layout(wide_args[0])
    return separate(narrow, wide, narrow_args, wide_args, subnets, lines=True).layout


def arguments_of(name: str, function: Any, args: Any) -> tuple[PyTree, ...]:
    """Return a function's arguments, with Python's numbers as arrays."""
    if not isinstance(args, (tuple, list)) or not args:
        raise TypeError(f"{name}_args is a tuple (variables, *inputs), got {shown(args)}")
    try:
        inspect.signature(function).bind(*args)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot be called with {len(args)} arguments: {error}") from error
    leaves = leaves_of(tuple(args), f"{name}_args")
    faults = {path: array_fault(leaf) for path, leaf in leaves.items()}
    wrong = [f"{name}_args/{'/'.join(p)} {fault}" for p, fault in faults.items() if fault]
    if wrong:
        raise TypeError(
            "expected arrays or jax.ShapeDtypeStructs (close over anything else):\n  "
            + "\n  ".join(wrong)
        )
    return tuple(jax.tree.map(lambda x: x if hasattr(x, "shape") else jnp.asarray(x), args))
