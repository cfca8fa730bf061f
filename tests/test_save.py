"""save and load: what comes back is what was saved, or a FileError; never anything else."""

import collections
import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any

import flax
import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dcjax
from dcjax._files.manifest import DTYPES
from dcjax._layout.json import layout_from_json, layout_to_json
from tests.test_contract import random_stacked

SUFFIXES = [".npz", ".safetensors"]
both = pytest.mark.parametrize("suffix", SUFFIXES)


def assert_same(got, expected):
    """Equal to the bit: structure, keys, layouts, dtypes, shapes, values."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)  # compares layouts too
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def subnets():
    """Two sub-networks of one dense layer; the layout has every kind of axis."""
    order, repeated = dcjax.Order, dcjax.Order((dcjax.Run(1),), repeat=2)
    mixed = order((dcjax.Run(1, shared=True), dcjax.Run(1)))
    leaves = (
        (("kernel",), dcjax.LeafLayout((mixed, repeated))),
        (("bias",), dcjax.LeafLayout((repeated,), head=True, used=False)),
    )
    tree = {"kernel": jnp.arange(8.0).reshape(2, 2, 2), "bias": jnp.ones((2, 2), jnp.bfloat16)}
    return dcjax.Stacked(tree, dcjax.Layout(2, leaves))


def everything():
    return {"p": subnets(), "": {"a/b": jnp.array([True, False])}, "key": jax.random.key(3)}


def random_leaf(draw):
    if draw(st.integers(0, 9)) == 0:
        impl = draw(st.sampled_from(["threefry2x32", "rbg", "unsafe_rbg"]))
        return jax.random.split(jax.random.key(7, impl=impl), draw(st.integers(1, 3)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    size = int(np.prod(shape)) * dtype.itemsize
    data = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    data = data & {"bool": 1, "int4": 15, "uint4": 15}.get(dtype.name, 255)
    return data.view(dtype).reshape(shape) if size else np.zeros(shape, dtype)


KEYS = st.text(max_size=4) | st.sampled_from(
    ["", ".", "..", "/", "a/b", "\0", "\ud800", "__metadata__", "dcjax.json", "array 0", "x" * 2000]
)
LEAVES = st.composite(random_leaf)()
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6)


@both
@settings(deadline=None, max_examples=30)
@given(tree=TREES)
def test_any_tree_comes_back(suffix, tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / f"tree{suffix}"
    with jax.enable_x64(True):
        dcjax.save(path, tree)
        assert_same(dcjax.load(path, max_bytes=path.stat().st_size), tree)


@st.composite
def layouts(draw):
    runs = st.lists(st.builds(dcjax.Run, st.integers(0, 3), st.booleans()), max_size=6).map(tuple)
    orders = st.lists(st.builds(dcjax.Order, runs, st.integers(0, 4)), max_size=3).map(tuple)
    leaf = st.builds(
        dcjax.LeafLayout,
        orders,
        head=st.booleans(),
        used=st.booleans(),
        factor=st.floats(1e-9, 1e9),
    )
    paths = st.lists(KEYS, max_size=2).map(tuple)
    return dcjax.Layout(draw(st.integers(1, 5)), tuple(draw(st.dictionaries(paths, leaf)).items()))


@settings(deadline=None, max_examples=50)
@given(layout=layouts())
def test_any_layout_comes_back(layout):
    assert layout_from_json(json.loads(json.dumps(layout_to_json(layout)))) == layout


@pytest.fixture(scope="module")
def stacked():
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    return random_stacked(dcjax.models.CNN(width=8, num_classes=10), 4, image)


@both
def test_a_network_comes_back_and_composes_to_the_same(suffix, stacked, tmp_path):
    path = tmp_path / f"cnn{suffix}"
    for tree in (stacked, {"a": {"params": stacked["params"]}, "empty": {}}):
        dcjax.save(path, tree)
        assert_same(dcjax.load(path), tree)
    dcjax.save(path, stacked)
    composed = dcjax.compose(stacked)
    assert_same(dcjax.compose(dcjax.load(path)), composed)
    dcjax.save(path, composed)
    assert_same(dcjax.load(path), composed)


def test_other_programs_read_the_arrays(tmp_path):
    variables = {"params": {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3)}}}
    dcjax.save(tmp_path / "a.npz", variables)
    dcjax.save(tmp_path / "a.safetensors", variables)
    theirs = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as numpys:
        for read in (numpys, theirs):
            expected = np.arange(6, dtype=np.float32).reshape(2, 3)
            np.testing.assert_array_equal(read["params/Dense_0/kernel"], expected, strict=True)


@both
def test_equal_variables_make_equal_files(suffix, tmp_path, monkeypatch):
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path, now in zip(paths, [1e9, 2e9], strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda now=now: now)
            dcjax.save(path, everything())
    assert paths[0].read_bytes() == paths[1].read_bytes()


@both
def test_unusual_arrays(suffix, tmp_path):
    """Other orders of bytes and of memory, a view with strides, a numpy scalar, a FrozenDict."""
    path = tmp_path / f"a{suffix}"
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    odd = {
        "big": matrix.astype(">f4"),
        "columns": np.asfortranarray(matrix),
        "view": matrix[::2, 1],
    }
    dcjax.save(path, flax.core.freeze({**odd, "scalar": np.int8(3)}))
    plain = {name: np.array(a, np.float32, order="C") for name, a in odd.items()}
    assert_same(dcjax.load(path), {**plain, "scalar": jnp.int8(3)})


# What cannot be saved.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    """A pytree that Flax does not know."""

    first: Any
    second: Any


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ((jnp.ones(2),), "tuple; save flax.serialization.to_state_dict"),
        ([jnp.ones(2)], "list"),
        (optax.adam(0.1).init({"w": jnp.ones(2)}), "tuple"),
        (None, "NoneType; save {jax.tree_util.keystr"),
        (Pair(jnp.ones(2), jnp.ones(2)), "Pair; save {jax.tree_util.keystr"),
        (collections.UserDict(a=jnp.ones(2)), "UserDict; save dict(…) of it"),
        (nnx.State({"a": jnp.ones(2)}), "to_state_dict(nnx.to_pure_dict(state))"),
        (1.5, "float; try jax.numpy.asarray"),
        ("text", "str"),
        (np.array([object()]), "dtype object"),
        (np.array(["a"]), "dtype <U1"),
        (np.zeros(2, [("x", "f4")]), "dtype"),
        (np.ma.masked_array([1.0], [True]), "mask"),
        (jnp.ones(2, jnp.int2), "dtype int2"),
        ({3: jnp.ones(2)}, "keys are str, got 3"),
    ],
)
def test_what_is_no_array_is_refused_by_name(leaf, words, tmp_path):
    with pytest.raises(TypeError, match=r"(?s)a/b: .*second: ") as error:
        dcjax.save(tmp_path / "a.npz", {"a": {"b": leaf}, "c": jnp.ones(2), "second": object()})
    assert words in str(error.value)
    assert not list(tmp_path.iterdir())


def test_keys_of_a_generator_of_ones_own_are_refused(tmp_path):
    own = jax.extend.random.define_prng_impl(
        key_shape=(1,), seed=None, split=None, random_bits=None, fold_in=None, name="own"
    )
    key = jax.random.wrap_key_data(jnp.zeros(1, jnp.uint32), impl=own)
    with pytest.raises(TypeError, match="a: random keys of an implementation"):
        dcjax.save(tmp_path / "a.npz", {"a": key})


def test_the_remedy_for_the_optimisers_state_works(tmp_path):
    state = optax.adam(0.1).init({"w": jnp.ones(2)})
    dcjax.save(tmp_path / "state.npz", flax.serialization.to_state_dict(state))
    back = flax.serialization.from_state_dict(state, dcjax.load(tmp_path / "state.npz"))
    assert_same(back, state)


def test_the_remedy_for_nnx_works(tmp_path):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])
            self.norm, self.dropout = nnx.BatchNorm(2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    path, (old, new) = tmp_path / "a.npz", (Network(nnx.Rngs(seed)) for seed in range(2))
    pure = nnx.to_pure_dict(nnx.state(old))
    with pytest.raises(TypeError, match=r"layers: keys are str, got 0; save flax.*to_state_dict"):
        dcjax.save(path, pure)
    dcjax.save(path, flax.serialization.to_state_dict(pure))
    state = nnx.state(new)
    pure = nnx.to_pure_dict(state)
    back = flax.serialization.from_state_dict(pure, dcjax.load(path))
    nnx.replace_by_pure_dict(state, back)
    nnx.update(new, state)
    assert_same(nnx.to_pure_dict(nnx.state(new)), nnx.to_pure_dict(nnx.state(old)))


def test_the_remedy_for_other_pytrees_works(tmp_path):
    tree = {"a": Pair(jnp.ones(2), (jnp.zeros(3), None))}
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    dcjax.save(tmp_path / "a.npz", {jax.tree_util.keystr(path): leaf for path, leaf in paths})
    assert_same(structure.unflatten(dcjax.load(tmp_path / "a.npz").values()), tree)


def test_flax_serialises_stacked_variables():
    tree = {"nets": subnets(), "step": jnp.int32(3)}
    zeros = jax.tree.map(jnp.zeros_like, tree)
    for like, saved in ((zeros, tree), (zeros["nets"], tree["nets"])):
        back = flax.serialization.from_bytes(like, flax.serialization.to_bytes(saved))
        assert_same(jax.tree.map(jnp.asarray, back), saved)
    wrong = jax.tree.map(lambda leaf: leaf[None], subnets())
    data = flax.serialization.msgpack_serialize(flax.serialization.to_state_dict(wrong))
    with pytest.raises(ValueError, match=r"bias: expected .*\(2, 2\), got \(1, 2, 2\)"):
        flax.serialization.from_bytes(subnets(), data)


def test_a_stack_that_does_not_fit_its_layout_is_refused(tmp_path):
    wrong = jax.tree.map(lambda leaf: leaf[None], subnets())
    with pytest.raises(ValueError, match=r"nets.*\n  bias: expected .*\(2, 2\), got \(1, 2, 2\)"):
        dcjax.save(tmp_path / "a.npz", {"nets": wrong})


def test_the_suffix_names_the_format(tmp_path):
    for name in ("a", "a.pkl", "a.NPZ", "npz"):
        for call in (lambda path: dcjax.save(path, {}), dcjax.load):
            with pytest.raises(ValueError, match=r"\.npz or \.safetensors"):
                call(tmp_path / name)


@both
def test_nothing_is_narrowed(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    tree = {"a": np.array([1e300]), "b": np.array(2**40), "c": np.zeros(2, np.float32)}
    dcjax.save(path, tree)
    with pytest.raises(ValueError, match=r"(?s)jax_enable_x64.*a: float64\n  b: int64$") as error:
        dcjax.load(path)
    assert not isinstance(error.value, dcjax.FileError)
    with jax.enable_x64(True):
        assert_same(dcjax.load(path), tree)


@both
def test_missing_and_large_files(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(FileNotFoundError):
        dcjax.load(path)
    with pytest.raises(FileNotFoundError):
        dcjax.save(tmp_path / "no folder" / path.name, {})
    dcjax.save(path, everything())
    size = path.stat().st_size
    assert_same(dcjax.load(path, max_bytes=size), everything())
    with pytest.raises(dcjax.FileError, match=f"{size} bytes, more than max_bytes={size - 1}"):
        dcjax.load(path, max_bytes=size - 1)


@both
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(suffix, step, tmp_path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    dcjax.save(path, everything())

    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="the disk is full"):
            dcjax.save(path, {"new": jnp.ones(3)})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert_same(dcjax.load(path), everything())
    dcjax.save(path, {"new": jnp.ones(3)})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert_same(dcjax.load(path), {"new": jnp.ones(3)})


@both
def test_paths_at_home_and_in_no_folder(suffix, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    dcjax.save(f"~/a{suffix}", everything())
    assert_same(dcjax.load(tmp_path / f"a{suffix}"), everything())
    assert_same(dcjax.load(f"~/a{suffix}"), everything())
    with pytest.raises(FileNotFoundError) as error:
        dcjax.save(tmp_path / "none" / f"b{suffix}", everything())
    assert error.value.filename == str(tmp_path / "none" / f"b{suffix}")


@both
@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "link to a fifo"])
def test_what_is_not_a_file_is_refused_at_once(suffix, kind, tmp_path):
    path = tmp_path / f"a{suffix}"
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "fifo" if "link" in kind else path)
        if "link" in kind:
            path.symlink_to("fifo")
    with pytest.raises((dcjax.FileError, IsADirectoryError), match=path.name):
        dcjax.load(path)
    with pytest.raises(OSError, match=r"not a regular file.*a\."):
        dcjax.save(path, everything())


PEAK = """
import resource, sys, jax.numpy as jnp, numpy as np, dcjax
path, size, count = sys.argv[1], 25_000_000, int(sys.argv[2])
dcjax.save(path, {"a": jnp.ones(3)})
dcjax.load(path)
tree = {f"a{i}": np.full(size // count, i, np.float32) for i in range(count)}
peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
dcjax.save(path, tree)
peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
del tree
back = dcjax.load(path)
peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
assert float(back[f"a{count - 1}"][-1]) == count - 1
unit = 1 if sys.platform == "darwin" else 1024
print(*[(peak - peaks[0]) * unit / (4 * size) for peak in peaks[1:]])
"""


@both
@pytest.mark.parametrize("count", [1, 10])
def test_a_file_takes_its_size_in_memory(suffix, count, tmp_path):
    """The tree's memory is given back before it is loaded."""
    command = [sys.executable, "-c", PEAK, tmp_path / f"a{suffix}", str(count)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    saving, loading = map(float, ran.stdout.split())
    assert saving < 0.3
    assert loading < 0.3


@both
def test_a_large_axis_beside_an_empty_one(suffix, tmp_path):
    path, shape = tmp_path / f"a{suffix}", (10**9, 0)
    started = time.monotonic()
    dcjax.save(path, {name: np.zeros(shape, DTYPES[name]) for name in ("float32", "bool", "int4")})
    back = dcjax.load(path)
    assert time.monotonic() - started < 5  # it was minutes
    assert {leaf.shape for leaf in back.values()} == {shape}
