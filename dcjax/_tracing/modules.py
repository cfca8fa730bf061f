"""The functions and arguments of two modules, for networks of Flax NNX and Equinox."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from dcjax._checks import shown

Function = Callable[..., Any]
Arguments = tuple[PyTree, ...]


def functions_of_modules(
    narrow: Any, wide: Any, *inputs: PyTree, call: Callable[..., Any] | None = None
) -> tuple[Function, Function, Arguments, Arguments]:
    """Return what `layout_of_functions` and `verify_functions` take, from two modules.

    The variables of an NNX module are its state, `nnx.state(module)`. Those of any other module
    that is a pytree, as Equinox's are, are the module with None in place of all that is not an
    array, `eqx.filter(module, eqx.is_array)`.

    Args:
      narrow: the sub-network, a module of Flax NNX or Equinox.
      wide: the global network, a module of the same class; its arrays may be abstract.
      *inputs: what both are called with.
      call: a function `(module, *inputs) -> outputs` that makes all the calls that matter; by
        default the module's own call. It maps an Equinox module over a batch,
        `lambda net, x: jax.vmap(net)(x)`, and uses the heads that serve in training only.

    Returns:
      Two functions `(variables, *inputs) -> outputs` and their arguments: narrow, wide,
      narrow_args, wide_args.

    Raises:
      TypeError: a module is not of NNX, and has no arrays as a pytree.

    >>> import dcjax, jax
    >>> from flax import nnx
    >>> class Net(nnx.Module):
    ...     def __init__(self, width, seed=0):
    ...         rngs = nnx.Rngs(seed)
    ...         self.body = nnx.Linear(6, width, rngs=rngs)
    ...         self.head = nnx.Linear(width, 3, rngs=rngs)
    ...     def __call__(self, x):
    ...         return self.head(nnx.relu(self.body(x)))
    >>> subnets, network, x = [Net(2, k) for k in range(4)], Net(8), jax.numpy.ones((5, 6))
    >>> sides = dcjax.functions_of_modules(subnets[0], network, x)
    >>> layout = dcjax.layout_of_functions(*sides, 4)
    >>> stacked = dcjax.stack([nnx.state(subnet) for subnet in subnets], like=layout)
    >>> dcjax.verify_functions(*sides, stacked).error < 1e-5
    True
    >>> nnx.update(network, dcjax.compose(stacked))
    """
    (f, narrow_variables), (g, wide_variables) = (_parts(net, call) for net in (narrow, wide))
    return f, g, (narrow_variables, *inputs), (wide_variables, *inputs)


def _parts(module: Any, call: Callable[..., Any] | None) -> tuple[Function, PyTree]:
    """Return a module as a function of its variables and the inputs, and the variables."""
    from flax import nnx  # not imported with flax: a third of a second

    run = call or (lambda net, *inputs: net(*inputs))
    if isinstance(module, nnx.Module):
        graph, state = nnx.split(module)
        return lambda state, *inputs: run(nnx.merge(graph, state), *inputs), state
    can_run = call is not None or callable(module)
    leaves, structure = jax.tree.flatten(module if can_run else ())
    is_array = [isinstance(x, (jax.Array, jax.ShapeDtypeStruct)) for x in leaves]
    if not any(is_array) or leaves[0] is module:
        raise TypeError(
            "expected a module of Flax NNX, or one that is a pytree with arrays as Equinox's are, "
            f"got {shown(module)}; dcjax.layout_of_functions takes functions, dcjax.layout a Flax "
            "Linen module"
        )
    pairs = list(zip(leaves, is_array, strict=True))
    variables = structure.unflatten([x if of_array else None for x, of_array in pairs])
    rest = [None if of_array else x for x, of_array in pairs]

    def function(variables: PyTree, *inputs: PyTree) -> Any:
        arrays = iter(jax.tree.leaves(variables))
        return run(structure.unflatten([next(arrays) if x is None else x for x in rest]), *inputs)

    return function, variables
