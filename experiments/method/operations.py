"""Floating-point operations, as XLA counts them."""

import functools
from typing import Any

import jax
from flax import linen as nn


def forward(network: nn.Module, x: jax.ShapeDtypeStruct, **kwargs: Any) -> float:
    """Return the operations of a network's forward pass over a batch of that shape.

    `kwargs` is what else the network's call needs. Nothing is computed. A training step takes about
    three times as many: the gradients by the activations and by the parameters take about as much
    as the forward pass each.

    >>> import flax.linen as nn
    >>> forward(nn.Dense(3, use_bias=False), jax.ShapeDtypeStruct((1, 5), "float32"))
    30.0
    """
    init, apply = (functools.partial(f, **kwargs) for f in (network.init, network.apply))
    variables = jax.eval_shape(init, jax.random.key(0), x)
    counted: Any = jax.jit(apply).lower(variables, x).cost_analysis()
    return float(counted["flops"])
