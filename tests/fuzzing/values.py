"""Networks, right and wrong, and valid arguments."""

import dataclasses
import functools
import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import dcjax

F, N, CLASSES = 3, 2, 4  # features, samples, classes
BATCH = np.linspace(-1, 1, N * F, dtype=np.float32).reshape(N, F)


class Tiny(nn.Module):
    """Every kind of leaf: split, block-diagonal, mixed head, mean, and a counter that is unused."""

    width: Any = 4

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(self.width, name="stem")(x)
        y = nn.Dense(self.width, name="body")(nn.relu(y))
        self.variable("counters", "calls", jnp.zeros, (), jnp.int32)
        return nn.Dense(CLASSES, name="head")(jnp.concatenate([x, y], -1))


class UserError(Exception):
    """An error from a user's code."""


class Raising(Tiny):
    def __call__(self, x):
        raise UserError


class Gives(Tiny):
    """A network whose result, or one of its variables, is not an array."""

    thing: Any = None
    variable_too: bool = False

    def __call__(self, x):
        if self.variable_too:
            self.variable("odd", "thing", lambda: self.thing)
        return self.thing


class Normed(Tiny):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(nn.LayerNorm()(nn.Dense(self.width)(x)))


class Modular(nnx.Module):
    def __init__(self, width):
        rngs = nnx.Rngs(0)
        self.stem, self.head = nnx.Linear(F, width, rngs=rngs), nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.stem(x)))


class Other(nn.Dense):
    """A network without a width, and with other variables."""

    def __call__(self, x):
        return super().__call__(x)


class Narrow(Tiny):
    to: Any = None

    def narrow(self, subnets):
        return self.to


class NotCallable(Tiny):
    narrow = 3


@dataclasses.dataclass
class NoNetwork:
    width: int = 4


NETWORKS = [
    Tiny, nn.Dense, Other(3), object(), lambda x: x, NoNetwork(), NoNetwork,
    types.SimpleNamespace(width=4, init=None, apply=None),
    Raising(4), Gives(4), Gives(4, thing="text"), Gives(4, thing=object()), Gives(4, thing=[1.0]),
    Gives(4, thing="text", variable_too=True), Normed(4), Narrow(4), Narrow(4, to=Tiny(2)),
    Narrow(4, to=Tiny), Narrow(4, to="text"), NotCallable(4), Tiny(4).bind({}),
    *(Tiny(w) for w in (0, -4, 1, 5, 6, 12, 4.0, "4", None, True, (4,), [4, 4], np.int64(4))),
]  # fmt: skip


@functools.cache
def layout_for(subnets):
    return dcjax.layout(Tiny(2 * subnets), subnets, BATCH)


def nested(leaves):
    tree: dict = {}
    for path, leaf in leaves:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def values(rng, path, shape):
    if path[-1] == "calls":
        return rng.integers(0, 9, shape).astype(np.int32)
    return np.asarray(rng.normal(size=shape), np.float32)


def stack_of(rng, subnets):
    layout = layout_for(subnets)
    leaves = ((p, values(rng, p, (subnets, *leaf.narrow_shape))) for p, leaf in layout.leaves)
    return dcjax.Stacked(nested(leaves), layout)


def whole_of(rng, subnets):
    layout = layout_for(subnets)
    return nested((p, values(rng, p, leaf.global_shape(subnets))) for p, leaf in layout.leaves)


def head_of(rng, subnets):
    """Draw the arguments for the head: the mean, or weights."""
    if rng.integers(2):
        return {}
    weights = rng.uniform(0.1, 1, subnets)
    return {"weights": (weights / weights.sum()).astype(np.float32)}


def is_key(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def abstract(array):
    dtype = array.dtype if is_key(array) else jax.dtypes.canonicalize_dtype(array.dtype)
    return jax.ShapeDtypeStruct(array.shape, dtype)
