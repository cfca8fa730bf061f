"""Mutations: a value with a change in it, or an unrelated value."""

import dataclasses
import math
import types
from collections.abc import Callable
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from hypothesis import strategies as st

import dcjax
from tests.fuzzing.values import NETWORKS, Tiny, abstract, layout_for

# Made anew for each case: some can be used only once.
JUNK: list[Callable[[], Any]] = [
    lambda: None, lambda: "kernel", lambda: b"kernel", lambda: 1.5, lambda: True, lambda: 3,
    lambda: -1, lambda: 0, lambda: 2**40, lambda: 2**70, lambda: math.nan, lambda: math.inf,
    lambda: 1j, object, lambda: object, dict, list, tuple, set, lambda: [None],
    lambda: {"params": None}, lambda: ..., lambda: range(2), lambda: (i for i in range(2)),
    lambda: lambda *_: None, lambda: np.array("a"), lambda: np.array(["a", "b"]),
    lambda: np.array([None, object()]), lambda: np.array(["2000-01-01"], "datetime64[D]"),
    lambda: np.zeros(2, [("a", "f4")]), lambda: np.float64(0.5), lambda: np.array(2.0),
    lambda: jnp.float32(1), lambda: jnp.zeros(2), lambda: jax.random.key(0),
    lambda: jax.random.split(jax.random.key(0)), lambda: jnp.zeros(3, jnp.uint32),
    lambda: jax.ShapeDtypeStruct((2,), jnp.float32), lambda: np.ma.masked_array([1.0], [True]),
    lambda: {1: 0.0, "1": 0.0}, lambda: [[1.0], [1.0, 2.0]], lambda: slice(2), lambda: 1.0,
    lambda: [0.5, 0.5], lambda: (1.0,), lambda: dcjax, lambda: optax.sgd(0.1), lambda: Tiny(4),
]  # fmt: skip
COUNTS: list[Any] = [
    1, 2, 3, 4, 5, 6, 0, -1, -2, True, False, 2.0, math.nan, "2", None, [2], (2,), (2, 2), (2, 0),
    (1.0, 2), "ab", (2, "b"), np.int64(2), np.int32(3), np.uint8(2), np.float64(2), np.bool_(True),
    np.array(2), np.array([2]), np.array(2.0), jnp.asarray(2), jnp.asarray(2.0), jnp.asarray([2]),
    1000, 10**12, 2**70, object(),
]  # fmt: skip
WORDS = ["", "WIDTH", "width", "params", np.array(["width", "depth"])]
DTYPES: list[Any] = [
    np.int32, np.int64, np.uint8, np.uint32, np.bool_, np.float16, ml_dtypes.bfloat16, np.float64,
    np.complex64, np.complex128, object, str, "datetime64[D]",
]  # fmt: skip
SHAPES: list[Callable[[np.ndarray], Any]] = [
    lambda a: a[0], lambda a: a[:-1], lambda a: a[1:], lambda a: a[:0], lambda a: a[None],
    lambda a: a[..., None], lambda a: a[..., :0], lambda a: a.T, lambda a: a.ravel(),
    lambda a: a.ravel()[:1].reshape(()), lambda a: np.concatenate([a, a[:1]]),
    lambda a: np.repeat(a, 2, -1), lambda a: a[::-1], lambda a: a.ravel()[0].item(),
    lambda a: a.copy("F"),
]  # fmt: skip
ODD = [
    math.nan,
    math.inf,
    -math.inf,
    0,
    -1,
    1,
    7,
    1e30,
    3e38,
    2**31,
    2**32,
    2**63 - 1,
    -(2**40),
    1e300,
]


def deleted(array):
    array = jnp.array(array)
    array.delete()
    return array


KINDS: list[Callable[[np.ndarray], Any]] = [
    jnp.asarray, np.ndarray.tolist, abstract, deleted,
    lambda a: jax.random.split(jax.random.key(0), a.shape), lambda a: [*np.ravel(a)],
    lambda a: (a,), lambda a: {"a": a},
]  # fmt: skip


def of_array(draw, array):
    """Return an array of another dtype, shape or type, or with odd entries."""
    if array.dtype.kind not in "biuf":
        return None
    how = draw(st.sampled_from(["dtype", "dtype", "shape", "shape", "kind", "entry", "entry"]))
    if how == "dtype":
        dtype = draw(st.sampled_from(DTYPES))
        return array.astype(np.int64 if isinstance(dtype, str) else array.dtype).astype(dtype)
    if how == "entry":
        value, wide = draw(st.sampled_from(ODD)), draw(st.booleans())
        dtype = (np.float64 if array.dtype.kind == "f" else np.int64) if wide else array.dtype
        if not array.size or array.dtype.kind not in "iuf":
            return array
        odd = array.astype(dtype)
        odd.flat[draw(st.integers(0, array.size - 1))] = np.array(value).astype(dtype)
        return odd
    change = draw(st.sampled_from(SHAPES if how == "shape" else KINDS))
    return change(array) if (array.ndim and array.size) or how == "kind" else array[None]


@dataclasses.dataclass
class Trees:
    """An iterable without a length."""

    items: Any

    def __iter__(self):
        return iter(self.items)


WRAPS: list[Callable[[Any], Any]] = [
    flax.core.freeze, lambda t: [*t.values()], lambda t: (t,), lambda t: {"params": t},
    lambda t: {**t, "extra": np.zeros(2, np.float32)}, lambda t: {**t, 1: np.zeros(2)},
    lambda t: dict(list(t.items())[1:]), lambda t: {str(k).upper(): v for k, v in t.items()},
    lambda t: dict(enumerate(t.values())), lambda t: types.MappingProxyType(t),
    lambda t: {**t, "none": None}, lambda t: {**t, "more": {}}, lambda t: t.items(),
    lambda t: dict(reversed(t.items())),
]  # fmt: skip


def of_dict(draw, tree):
    """Return a tree with another container, or with a mutation below one of its keys."""
    if not tree or draw(st.integers(0, 2)) == 0:
        return draw(st.sampled_from(WRAPS))(tree)
    key = draw(st.sampled_from(sorted(tree, key=str)))
    return {**tree, key: mutated(draw, tree[key])}


def of_list(draw, items):
    how = draw(st.sampled_from(["one", "one", "one", "fewer", "more", "tuple", "lazy", "dict"]))
    if how == "one" and items:
        i = draw(st.integers(0, len(items) - 1))
        return [*items[:i], mutated(draw, items[i]), *items[i + 1 :]]
    return {
        "fewer": items[1:], "more": [*items, *items[:1]], "tuple": tuple(items),
        "lazy": Trees(items), "dict": dict(enumerate(items)),
    }.get(how, [])  # fmt: skip


def of_layout(draw, layout):
    return draw(
        st.sampled_from([
            *(layout_for(k) for k in (1, 2, 3)), layout_for(2)["params"], dcjax.Layout, "layout",
            dcjax.Layout(layout.subnets, ()), layout.leaves, dcjax.Stacked({}, layout),
            dcjax.Stacked(None, None), dcjax.Stacked({}, "layout"), dcjax.LeafLayout(()),
        ])
    )  # fmt: skip


def of_stacked(draw, stacked):
    how = draw(st.sampled_from(["tree", "tree", "tree", "layout", "plain", "part", "twice", "in"]))
    tree, layout = stacked.tree, stacked.layout
    if how == "tree" or not (isinstance(tree, dict) and isinstance(layout, dcjax.Layout)):
        return dcjax.Stacked(mutated(draw, tree), layout)
    return {
        "layout": lambda: dcjax.Stacked(tree, of_layout(draw, layout)),
        "plain": lambda: tree,
        "part": lambda: dcjax.Stacked(next(iter(tree.values()), {}), layout),
        "twice": lambda: dcjax.Stacked(stacked, layout),
        "in": lambda: {"a": [stacked], "b": (stacked,)},
    }[how]()


def mutated(draw, value):
    """Return the value with a change in it, or an unrelated value."""
    choices = {
        np.ndarray: of_array, dict: of_dict, list: of_list, dcjax.Stacked: of_stacked,
        dcjax.Layout: of_layout,
    }  # fmt: skip
    change = choices.get(type(value))
    if change and draw(st.integers(0, 5)):
        return change(draw, value)
    if isinstance(value, nn.Module) and draw(st.integers(0, 5)):
        return draw(st.sampled_from(NETWORKS))
    if isinstance(value, int) and draw(st.integers(0, 5)):
        return draw(st.sampled_from(COUNTS))
    if isinstance(value, str) and draw(st.booleans()):
        return draw(st.sampled_from(WORDS))
    return draw(st.sampled_from(JUNK))()
