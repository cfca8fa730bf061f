"""Flax Linen networks: their layout, K sub-networks' variables, and their logits."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from dcjax._decompose import DEFAULT_FIELDS, check_subnets, decompose
from dcjax._layout import Layout
from dcjax._separate import Separation, identity_layout, separate
from dcjax._stack import stack
from dcjax._stacked import Stacked
from dcjax.samples import Samples, replicate

PyTree = Any


def layout(
    network: Any,
    subnets: int,
    x: Any,
    *,
    samples: Samples | None = None,
    fields: Sequence[str] = DEFAULT_FIELDS,
    **kwargs: Any,
) -> Layout:
    """The layout of a Flax Linen network: where each sub-network's entries stand in every leaf.

    Traces the sub-network and the global network side by side and follows the order of the channels
    through every operation. Costs tracing only; no array of the network's size is allocated.

    Args:
      network: the global network.
      subnets: K ≥ 1.
      x: a batch of images before `samples`, (N, H, W, C), or its `jax.ShapeDtypeStruct`.
      samples: what each sub-network sees (`dcjax.samples`); default `replicate(K)`.
      fields: the module's fields that carry width (see `decompose`).
      **kwargs: what else the network's call needs (`train=`, masks, `rngs=`).

    Returns:
      A `Layout`; printing it gives a table.

    Raises:
      NotSeparableError: a `ValueError` that lists every operation which cannot be composed exactly.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> layout = dcjax.layout(network, 4, jax.ShapeDtypeStruct((1, 16, 16, 3), "float32"))
    >>> layout.subnets
    4
    """
    x = _abstract(x)
    if check_subnets(subnets) == 1:
        return identity_layout(jax.eval_shape(_init(network, kwargs), jax.random.key(0), x))
    return separation(network, subnets, x, samples=samples, fields=fields, **kwargs).layout


def separation(
    network: Any,
    subnets: int,
    x: Any,
    *,
    samples: Samples | None,
    fields: Sequence[str],
    **kwargs: Any,
) -> Separation:
    """Both networks traced, with what the tracer knows of every array in between (K ≥ 2)."""
    subnet = decompose(network, subnets, fields)
    samples = samples_for(samples, subnets)
    narrow_x = jax.eval_shape(lambda x: samples.split(x)[0], x)
    wide_x = jax.eval_shape(samples.join, x)
    key = jax.random.key(0)
    return separate(
        lambda variables, x: subnet.apply(variables, x, **kwargs),
        lambda variables, x: network.apply(variables, x, **kwargs),
        (jax.eval_shape(_init(subnet, kwargs), key, narrow_x), narrow_x),
        (jax.eval_shape(_init(network, kwargs), key, wide_x), wide_x),
        subnets,
    )


def init(
    network: Any,
    subnets: int,
    key: Array,
    x: Shaped[Array, "N H W C"],
    *,
    samples: Samples | None = None,
    fields: Sequence[str] = DEFAULT_FIELDS,
    **kwargs: Any,
) -> Stacked:
    """K sub-networks' variables, independently initialised, stacked.

    Sub-network k is initialised with `jax.random.fold_in(key, k)`, so that it does not depend on
    how many there are, as `subnet.init(key_k, samples.split(x)[k])`.

    Args:
      network: the global network, a Flax Linen module.
      subnets: K ≥ 1.
      key: a random key.
      x: a batch of images (its values do not matter to most networks).
      samples: what each sub-network sees (`dcjax.samples`); default `replicate(K)`.
      fields: the module's fields that carry width (see `decompose`).
      **kwargs: what else the network's call needs.

    Returns:
      A `Stacked`, with the layout in it: leaves of shape (K, …).

    Raises:
      NotSeparableError: the network cannot be composed; nothing has been allocated by then.
      ValueError: K does not divide a width.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), jax.numpy.ones((2, 16, 16, 3)))
    >>> stacked["params"]["head"]["bias"].tree.shape
    (4, 10)
    """
    _check_key(key)
    found = layout(network, subnets, x, samples=samples, fields=fields, **kwargs)
    subnet = decompose(network, subnets, fields)
    xs = samples_for(samples, subnets).split(jnp.asarray(x))
    # XLA takes seconds to optimise each shape of random numbers, which are drawn but once.
    options = {"xla_backend_optimization_level": 1}
    initialise = jax.jit(_init(subnet, kwargs), compiler_options=options)
    keys = [jax.random.fold_in(key, k) for k in range(subnets)]
    variables = [initialise(key_k, x_k) for key_k, x_k in zip(keys, xs, strict=True)]
    return stack(variables, like=found)


def apply(
    subnet: Any, stacked: Stacked, xs: Shaped[Array, "K N ..."], **kwargs: Any
) -> Shaped[Array, "K N C"]:
    """All sub-networks' logits on their samples.

    Args:
      subnet: the sub-network, `decompose(network, K)`.
      stacked: the K sub-networks' variables.
      xs: what each sub-network sees, `samples.split(x)`.
      **kwargs: what else the network's call needs.

    Returns:
      logits (K, N, C): those of `subnet.apply(stacked[k], xs[k])`, stacked.

    Raises:
      ValueError: `xs` has another leading axis than K.

    >>> import dcjax, jax
    >>> network = dcjax.models.CNN(width=8, num_classes=10)
    >>> x = jax.numpy.ones((2, 16, 16, 3))
    >>> stacked = dcjax.init(network, 4, jax.random.key(0), x)
    >>> dcjax.apply(dcjax.decompose(network, 4), stacked, dcjax.samples.replicate(4).split(x)).shape
    (4, 2, 10)
    """
    if xs.shape[0] != len(stacked):
        raise ValueError(
            f"xs holds samples for {xs.shape[0]} sub-networks, the variables {len(stacked)}: "
            f"expected shape ({len(stacked)}, N, …), got {xs.shape}"
        )
    # Unrolled: convolutions under vmap or in a loop's body are several times slower on a CPU.
    pairs = zip(stacked, xs, strict=True)
    return jnp.stack([subnet.apply(variables, x, **kwargs) for variables, x in pairs])


def samples_for(samples: Samples | None, subnets: int) -> Samples:
    """The given samples, or the default, checked against K."""
    if samples is None:
        return replicate(subnets)
    if not isinstance(samples, Samples):
        raise TypeError(f"samples is one of dcjax.samples, such as replicate(4); got {samples!r}")
    if samples.subnets != subnets:
        raise ValueError(
            f"samples are for {samples.subnets} sub-networks, the network is split into {subnets}"
        )
    return samples


def _check_key(key: Any) -> None:
    dtype = getattr(key, "dtype", np.dtype(object))
    if dtype != np.uint32 and not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"key is a random key such as jax.random.key(0), got {key!r}; the order of arguments "
            "is init(network, K, key, x)"
        )


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    """The input's shape and dtype."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(
            f"x is one array with the batch first, got {type(x).__name__}; give what else the "
            "network's call needs as keyword arguments"
        )
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _init(network: Any, kwargs: dict[str, Any]) -> Any:
    """`network.init` as a function of a key and an input alone."""
    others = {name: value for name, value in kwargs.items() if name not in ("rngs", "mutable")}
    rngs = kwargs.get("rngs", {})

    def initialise(key: Array, x: Any) -> PyTree:
        return network.init({**rngs, "params": key} if rngs else key, x, **others)

    return initialise
