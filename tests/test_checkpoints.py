"""Checkpoints: what comes back is what was saved; a failure costs no checkpoint but its own."""

import asyncio
import os
import pickle
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1

import dcjax
from dcjax import checkpoints as module
from dcjax.checkpoints import CheckpointError, Checkpoints
from tests.saved import (
    assert_is,
    assert_same,
    committed,
    everything,
    fail,
    interrupt,
    names,
    never,
    save,
)

# Round trips.

IMPLS = ["threefry2x32", "rbg", "unsafe_rbg"]
DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int8, jnp.uint8, jnp.int32, jnp.uint32]
DTYPES += [jnp.bool_, jnp.complex64, jnp.int4, jnp.float8_e4m3fn]


def arrays():
    """Of every dtype: of no, one, two axes, empty ones; the bits that few look at."""
    normal = np.random.default_rng(0).normal(size=(3, 4)) * 3
    cast = {jnp.dtype(dtype).name: jnp.asarray(normal.astype(dtype)) for dtype in DTYPES}
    return {
        "cast": cast,
        "scalar": {name: array[0, 0] for name, array in cast.items()},
        "empty": {name: array[:0] for name, array in cast.items()},
        "special": jnp.array([np.nan, -np.nan, -0.0, np.inf, 1e-45, 3e38], jnp.float32),
        "bits": np.array([0x7FC00001, 0xFFFFFFFF], np.uint32).view(np.float32),
    }


def random_keys():
    one = {impl: jax.random.key(7, impl=impl) for impl in IMPLS}
    some = {impl: jax.random.split(key, (2, 3)) for impl, key in one.items()}
    return {"one": one, "some": some, "none": {i: keys[:0] for i, keys in some.items()}}


def optimiser_state():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3, jnp.bfloat16)}
    optimiser = optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 9)))
    _, state = optimiser.update(params, optimiser.init(params), params)
    return state, params


def stacked_model():
    network = dcjax.models.CNN(width=4, num_classes=3)
    return dcjax.init(network, 2, jax.random.key(0), jnp.ones((1, 8, 8, 3)))


def empty_tree():
    return {"nothing": (), "none": None}


def only_empty_arrays():
    return [jnp.zeros(0), jnp.zeros((3, 0), jnp.int8)]


def odd_names():
    return {"a/b": jnp.ones(1), "\n": jnp.ones(2), "ü\ud800": jnp.ones(3), "": {"..": jnp.ones(4)}}


def odd_memory():
    """Strides, columns first, the other order of bytes, scalars of NumPy."""
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    return [matrix[::2, 1], matrix.T, np.asfortranarray(matrix), np.float32(3), np.bool_(True)]


TREES = [arrays, random_keys, optimiser_state, stacked_model, empty_tree, only_empty_arrays]
TREES += [odd_names, odd_memory]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_a_tree_comes_back(tree, tmp_path):
    saved = tree()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, saved, {})
    with Checkpoints(tmp_path) as checkpoints:  # as another process would
        assert checkpoints.steps() == [0]
        loaded = checkpoints.load().into(saved)
    assert_same(loaded, saved)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))


def test_the_other_order_of_bytes(tmp_path):
    array = np.array([1, -2, 300], ">i4")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, array, {})
        got = checkpoints.load().into(array)
    assert_same(got, jnp.array([1, -2, 300]))


def test_nothing_is_narrowed(tmp_path):
    tree = {"a": np.array([1e300, 0.1]), "b": np.array(2**40), "c": np.zeros((0, 2))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, tree, {})
        assert_same(checkpoints.load().into(tree), tree)
        with pytest.raises(ValueError, match=r"\['b'\]: saved int64\[\], expected int32\[\]"):
            checkpoints.load().into({**tree, "b": jnp.int32(0)})
        with jax.enable_x64(True):
            loaded = checkpoints.load().into(tree)
            assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
            assert_same(loaded, tree)


def test_an_array_that_lies_on_several_devices(tmp_path):
    mesh = jax.make_mesh((len(jax.devices()),), ("d",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    array = jnp.arange(24.0 * len(jax.devices())).reshape(-1, 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, jax.device_put(array, sharding), {})
        assert_same(checkpoints.load().into(array), array)


def test_of_shapes_alone(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        like = jax.eval_shape(lambda: everything(1))
        assert_same(checkpoints.load().into(like), everything(1))


def test_the_record_survives(tmp_path):
    record = {
        "text": "ü\n\ud800\0",
        "number": 0.1,
        "huge": 10**40,
        "nan": [float("inf"), -0.0],
        "nested": [{"": [None, True, {}]}],
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, jnp.ones(2), record)
        expected, record["text"] = dict(record), "changed after save"
        record["nested"].append("changed after save")
        expected["nested"] = [{"": [None, True, {}]}]
        assert checkpoints.load().record == expected


def test_within_a_running_event_loop(tmp_path):
    async def run():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, everything(1), {"seed": 1})
            await asyncio.sleep(0)
            assert_is(checkpoints.load(), 1)
        return "done"

    assert asyncio.run(run()) == "done"


# What cannot be saved, and other trees.


def test_a_record_may_be_left_out_and_is_of_json(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jnp.ones(2))
        with pytest.raises(TypeError, match=r"float32 is not JSON serializable"):
            checkpoints.save(2, jnp.ones(2), {"loss": np.float32(1)})
        assert checkpoints.load().record == {}


def test_what_is_no_array_is_refused_by_name(tmp_path):
    tree = {
        "a": 1.5,
        "b": [jnp.ones(2), np.array(["x"])],
        "c": jax.ShapeDtypeStruct((2,), jnp.float32),
        "d": np.array([None]),
    }
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match=r"jax\.numpy\.asarray") as error:
            checkpoints.save(0, tree, {})
        for line in (
            "['a']: float; try jax.numpy.asarray",
            "['b'][1]: dtype <U1; cast",
            "['c']: ShapeDtypeStruct",
            "['d']: dtype object; cast",
        ):
            assert f"\n  {line}" in str(error.value)
        assert "['b'][0]" not in str(error.value)
        with pytest.raises(ValueError, match="expected a step >= 0, got -1"):
            checkpoints.save(-1, jnp.ones(2), {})
        with pytest.raises(TypeError):
            checkpoints.save(1.0, jnp.ones(2), {})  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="JSON"):
            checkpoints.save(1, jnp.ones(2), {"a": object()})
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match="expected keep >= 1, got 0"):
        Checkpoints(tmp_path, keep=0)


@jax.tree_util.register_pytree_with_keys_class
class Twins:
    """A node of a user's whose two children have one name."""

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey("twin")
        return ((key, jnp.ones(1)), (key, jnp.zeros(1))), None

    @classmethod
    def tree_unflatten(cls, *_):
        return cls()


def test_a_leaf_that_another_would_hide_is_refused(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"the same path.*\.twin"),
    ):
        checkpoints.save(0, Twins(), {})


def test_into_another_tree_lists_every_difference(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 4)
        saved = checkpoints.load()
    other = everything(4)
    other["params"]["w"] = other["params"]["w"].T
    other["count"] = jnp.float32(4)
    other["key"] = jax.random.key(4, impl="rbg")
    other["flags"] = 1
    del other["none"]
    other["new"] = jnp.ones(2)
    with pytest.raises(ValueError, match=r"^the checkpoint of step 4 is of another tree:") as error:
        saved.into(other)
    assert sorted(str(error.value).splitlines()[1:]) == [
        "  ['count']: saved int32[], expected float32[]",
        "  ['flags']: saved bool[3, 4], expected int",
        "  ['key']: saved key<fry>[], expected key<rbg>[]",
        "  ['new']: saved nothing, expected float32[2]",
        "  ['none']: saved float32[0, 4], expected nothing",
        "  ['params']['w']: saved float32[3, 4], expected float32[4, 3]",
    ]


def test_the_error_travels_between_processes():
    error = CheckpointError(Path("/a: b"), "is missing")
    again = pickle.loads(pickle.dumps(error))
    assert (again.file, again.reason, str(again)) == (error.file, "is missing", str(error))
    assert str(error) == "/a: b: is missing"


# What a save sees, and what it waits for.


@pytest.fixture
def held(monkeypatch):
    """Orbax waits before it writes, until the event is set."""
    go, save = threading.Event(), v1.save

    def later(*args, **options):
        assert go.wait(20)
        save(*args, **options)

    monkeypatch.setattr(v1, "save", later)
    yield go
    go.set()


def test_a_save_takes_a_copy(tmp_path, held):
    ours, given = np.arange(1000.0, dtype=np.float32), jnp.arange(1000.0) + 0
    key, expected = jax.random.key(1), np.arange(1000.0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"ours": ours, "given": given, "key": key}, {})
        ours[:] = -1
        jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(given).block_until_ready()
        assert given.is_deleted()
        key.delete()
        held.set()
        leaves = checkpoints.load().leaves
    np.testing.assert_array_equal(leaves["['ours']"], expected)
    np.testing.assert_array_equal(leaves["['given']"], expected)
    assert_same(leaves["['key']"], jax.random.key(1))


def test_a_save_returns_before_it_is_written(tmp_path, held):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, jnp.ones(2), {})
        assert checkpoints.steps() == []
        held.set()
        checkpoints.wait()
        assert checkpoints.steps() == [0]


def test_a_reader_waits_for_the_save_that_deletes_what_it_would_read(tmp_path, held):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        threading.Timer(0.2, held.set).start()
        checkpoints.save(0, everything(0), {"seed": 0})
        assert_is(checkpoints.load(), 0)
        held.clear()
        threading.Timer(0.2, held.set).start()
        checkpoints.save(1, everything(1), {"seed": 1})
        assert_is(checkpoints.newest(never), 1)


def test_an_interrupted_wait_loses_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(v1, "save", fail)
    checkpoints = Checkpoints(tmp_path).__enter__()
    checkpoints.save(0, jnp.ones(2), {})
    assert checkpoints._pending is not None
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._pending[1], "exception", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.wait()
    with pytest.raises(CheckpointError):
        checkpoints.__exit__(None, None, None)


def test_outside_the_context_nothing_is_saved_and_that_is_said(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(RuntimeError, match=r"step 1 is not saved: save within `with Checkpoints"):
        checkpoints.save(1, jnp.ones(2), {})
    with checkpoints:
        checkpoints.save(1, jnp.ones(2), {})
    with pytest.raises(RuntimeError, match="step 2 is not saved"):
        checkpoints.save(2, jnp.ones(2), {})
    assert checkpoints.steps() == [1]


# Which are kept.


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_are_kept(keep, tmp_path):
    with Checkpoints(tmp_path / "made" / "here", keep=keep) as checkpoints:
        for step in range(0, 12, 2):
            save(checkpoints, step)
            expected = list(range(0, step + 1, 2))[-keep:]
            assert checkpoints.steps() == expected
            assert names(checkpoints.folder) == committed(*expected)
        for step in checkpoints.steps():
            assert_is(checkpoints.load(step), step)
        with pytest.raises(FileNotFoundError, match=r"of step 1 in .*; there are \["):
            checkpoints.load(1)


def test_the_folder_is_named_and_may_be_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Checkpoints("~/a").folder == tmp_path / "a"
    with pytest.raises(ValueError, match="empty path"):
        Checkpoints("")


def test_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.newest(never) is None
        with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*; there are none"):
            checkpoints.load()


@pytest.mark.usefixtures("unchecked")
def test_large_steps_and_those_of_numpy(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(np.int64(7), jnp.ones(2), {})  # pyright: ignore[reportArgumentType]
        for step in (10**8, 10**12):
            checkpoints.save(step, jnp.ones(2), {})
        checkpoints.wait()
        assert checkpoints.steps() == [10**8, 10**12]
        assert checkpoints.load().step == 10**12


FAILURES = {"Orbax": (v1, "save"), "sync": (os, "fsync"), "commit": (os, "rename")}


@pytest.mark.parametrize("place", FAILURES)
@pytest.mark.parametrize("keep", [1, 2])
def test_a_failure_deletes_nothing_and_leaves_nothing(keep, place, tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        save(checkpoints, 1, 2, 3)
        before = committed(*checkpoints.steps())
        assert names(tmp_path) == before
        for step in (3, 4):  # the same again, and another
            with monkeypatch.context() as patch:
                patch.setattr(*FAILURES[place], fail)
                with pytest.raises(CheckpointError, match=rf"0000000{step}: .*No space") as error:
                    save(checkpoints, step)
            assert error.value.file == tmp_path / f"{step:08d}"
            assert names(tmp_path) == before
            for good in checkpoints.steps():
                assert_is(checkpoints.load(good), good)
        save(checkpoints, 4)  # there is space again
        assert_is(checkpoints.load(), 4)
        assert names(tmp_path) == committed(*[2, 3, 4][-1 - keep + 1 :])


def test_what_is_kept_is_deleted_only_when_a_newer_one_is_on_the_disk(tmp_path, monkeypatch):
    seen, sync = [], module._sync

    def watch(path):
        seen.append((path, names(tmp_path)))
        sync(path)

    monkeypatch.setattr(module, "_sync", watch)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 1)
        for old, new in [(1, "00000002"), ("00000002", "00000002.1"), ("00000002.1", "00000002.2")]:
            seen.clear()
            save(checkpoints, 2)
            folder = tmp_path / new
            assert {path for path, _ in seen} == {tmp_path, folder, *folder.rglob("*")}
            assert all(there == [old if old != 1 else "00000001", new] for _, there in seen)
            assert names(tmp_path) == [new]


def test_the_same_step_is_replaced(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        for value in range(4):
            checkpoints.save(2, jnp.full(3, value), {"value": value})
            saved = checkpoints.load(2)
            assert saved.record == {"value": value}
            assert_same(saved.into(jnp.zeros(3, int)), jnp.full(3, value))
            checkpoints.wait()
            assert len(names(tmp_path)) == 2
        assert checkpoints.steps() == [1, 2]
        assert_is(checkpoints.load(1), 1)


def test_a_run_that_goes_back_keeps_what_it_saves(tmp_path):
    """Of a later step are those that the run has yet to come to again."""
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 1, 2, 10, 11)
        for step, expected in [(3, [3, 10, 11]), (4, [3, 4, 10, 11]), (10, [4, 10, 11])]:
            save(checkpoints, step)
            assert checkpoints.steps() == expected
            assert_is(checkpoints.load(step), step)
        save(checkpoints, 12)
        assert names(tmp_path) == committed(11, 12)


def test_a_damaged_one_does_not_count(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 1, 2)
        shutil.rmtree(tmp_path / "00000002" / "state")
        assert_is(checkpoints.newest(lambda error: None), 1)
        save(checkpoints, 3)
        assert checkpoints.steps() == [1, 2, 3]
        save(checkpoints, 4)
        assert names(tmp_path) == committed(3, 4)
        shutil.rmtree(tmp_path / "00000004" / "state")
        assert_is(checkpoints.newest(lambda error: None), 3)
        save(checkpoints, 4, 5)  # good again, and counts
        assert names(tmp_path) == ["00000004.1", "00000005"]
