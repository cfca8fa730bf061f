"""Checkpoints: what comes back is what was saved; a failure costs no checkpoint but its own."""

import contextlib
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
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
from dcjax.checkpoints import Checkpoint, CheckpointError, Checkpoints


def assert_same(got, expected):
    """Equal to the bit: structure, keys, dtypes, shapes, values."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def everything(step):
    """A small tree with leaves of many kinds, all of them other ones at another step."""
    rng = np.random.default_rng(step)
    normal = rng.normal(size=(3, 4))
    return {
        "params": {"w": jnp.asarray(normal, jnp.float32), "b": jnp.asarray(normal, jnp.bfloat16)},
        "key": jax.random.key(step),
        "count": jnp.int32(step),
        "flags": jnp.asarray(normal > 0),
        "none": jnp.zeros((0, step)),
    }


def assert_is(saved, step):
    assert isinstance(saved, Checkpoint)
    assert saved.step == step
    assert saved.record == {"seed": step}
    assert_same(saved.into(everything(step)), everything(step))


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, everything(step), {"seed": step})
    checkpoints.wait()


def never(error):
    raise AssertionError(f"nothing is damaged, but: {error}")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def committed(*steps):
    """The names that the checkpoints of these steps have, and no others."""
    return sorted(f"{step:08d}{suffix}" for step in steps for suffix in ("", ".json"))


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


# What cannot be saved, and other trees.


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
            "['a']: float",
            "['b'][1]: str32[1]",
            "['c']: float32[2]",
            "['d']: object[1]",
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
        pytest.raises(ValueError, match=r"a path for every leaf.*\.twin"),
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

    def later(*args):
        assert go.wait(20)
        save(*args)

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
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(v1, "save", fail)
    checkpoints.save(0, jnp.ones(2), {})
    assert checkpoints._pending is not None
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._pending[1], "exception", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.wait()
    with pytest.raises(CheckpointError), checkpoints:
        pass


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


def test_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.newest(never) is None
        with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*; there are none"):
            checkpoints.load()


def test_large_steps_and_those_of_numpy(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(np.int64(7), jnp.ones(2), {})  # pyright: ignore[reportArgumentType]
        for step in (10**8, 10**12):
            checkpoints.save(step, jnp.ones(2), {})
        checkpoints.wait()
        assert checkpoints.steps() == [10**8, 10**12]
        assert checkpoints.load().step == 10**12


def fail(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_, **__):
    raise KeyboardInterrupt


FAILURES = {"Orbax": (v1, "save"), "sync": (os, "fsync"), "commit": (os, "replace")}
FAILURES["read"] = (module, "_digests")


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


def test_what_is_kept_is_deleted_only_after_the_commit(tmp_path, monkeypatch):
    seen, commit = [], module._commit

    def watch(file, content):
        seen.append((file.name, names(tmp_path)))
        commit(file, content)

    monkeypatch.setattr(module, "_commit", watch)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 1, 2, 2, 2)
    one, again = committed(1), ["00000002", "00000002.again", "00000002.json"]
    assert seen == [
        ("00000001.json", ["00000001"]),
        ("00000002.json", sorted([*one, "00000002"])),
        ("00000002.json", again),
        ("00000002.json", again),
    ]


def test_all_is_on_the_disk_before_the_commit(tmp_path, monkeypatch):
    seen, commit, sync = [], os.replace, module._sync
    monkeypatch.setattr(module, "_sync", lambda path: (seen.append(path), sync(path)))
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append("commit"), commit(*paths)))
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    at, folder = seen.index("commit"), tmp_path / "00000001"
    assert set(seen[:at]) == {folder, *folder.rglob("*")}
    assert seen[at + 1 :] == [tmp_path]


def test_the_same_step_is_replaced(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        for value in range(4):
            checkpoints.save(2, jnp.full(3, value), {"value": value})
            saved = checkpoints.load(2)
            assert saved.record == {"value": value}
            assert_same(saved.into(jnp.zeros(3, int)), jnp.full(3, value))
            checkpoints.wait()
            assert len(names(tmp_path)) == 4
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
        (tmp_path / "00000002.json").write_bytes(b"")
        assert_is(checkpoints.newest(lambda error: None), 1)
        save(checkpoints, 3)
        assert checkpoints.steps() == [1, 2, 3]
        save(checkpoints, 4)
        assert names(tmp_path) == committed(3, 4)
        (tmp_path / "00000004.json").write_bytes(b"")
        assert_is(checkpoints.newest(lambda error: None), 3)
        save(checkpoints, 4, 5)  # good again, and counts
        assert names(tmp_path) == committed(4, 5)


# What else is in the folder.


def test_foreign_files_are_left_alone(tmp_path):
    foreign = ["a.json", "12.json", "000000012.json", "٠٠٠٠٠٠١٢.json", "x0000001.json"]
    foreign += ["00000001.txt", "00000001.JSON", "1", ".json", "00000001.again.txt", "-0000001"]
    for name in foreign:
        (tmp_path / name).write_text("foreign")
    (tmp_path / "00000001.plots").mkdir()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.steps() == []
        save(checkpoints, 1, 2)
        assert checkpoints.steps() == [2]
        assert_is(checkpoints.newest(never), 2)
    assert names(tmp_path) == sorted([*foreign, "00000001.plots", *committed(2)])


def leave_behind(folder, good, step):
    """What a killed save leaves: Orbax's drafts, what was not committed, half a committing file."""
    for name in ("", ".again", ".orbax-checkpoint-tmp", ".again.orbax-checkpoint-tmp-12"):
        shutil.copytree(folder / good, folder / f"{step:08d}{name}")
    shutil.copy(folder / f"{good}.json", folder / f"{step:08d}.draft")


def test_what_a_killed_save_leaves(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 3)
        for step in (1, 4, 5):
            leave_behind(tmp_path, "00000003", step)
        assert checkpoints.steps() == [3]
        assert_is(checkpoints.newest(never), 3)
        with pytest.raises(FileNotFoundError):
            checkpoints.load(4)
        save(checkpoints, 4)  # deletes what is older than all that is kept, and of its own
        assert [name for name in names(tmp_path) if "00000005" not in name] == committed(3, 4)
        save(checkpoints, 6, 7)  # the step 5 is never saved
        assert names(tmp_path) == committed(6, 7)
        assert_is(checkpoints.load(), 7)


def test_what_a_killed_save_of_the_same_step_leaves(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 3)
        leave_behind(tmp_path, "00000003", 4)
        for path in tmp_path.glob("00000004?*"):
            path.rename(tmp_path / path.name.replace("4", "3", 1))
        shutil.rmtree(tmp_path / "00000004")
        assert_is(checkpoints.load(), 3)
        save(checkpoints, 3)
        assert names(tmp_path) == ["00000003.again", "00000003.json"]
        assert_is(checkpoints.load(), 3)


@pytest.mark.parametrize("name", ["00000002", "00000002.json", "00000002.draft"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_stands_in_the_way(kind, name, tmp_path):
    """Files where folders should be, folders where files should be, links to nowhere."""
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 1)
        put(tmp_path / name, kind)
        save(checkpoints, 2)
        assert_is(checkpoints.load(), 2)
        assert names(tmp_path) == committed(2)
        put(tmp_path / name, kind)  # and what is to be deleted
        save(checkpoints, 3)
        assert names(tmp_path) == committed(3)


def put(path, kind):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "file":
        path.write_text("in the way")
    elif kind == "folder":
        (path / "inner").mkdir(parents=True)
    else:
        path.symlink_to("/nowhere/at/all")


# Failures.


def test_the_next_save_raises(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(v1, "save", fail)
            checkpoints.save(1, jnp.ones(2), {})
            with pytest.raises(CheckpointError, match="No space") as error:
                checkpoints.save(2, jnp.ones(2), {})
        assert isinstance(error.value.__cause__, OSError)
        checkpoints.wait()  # it is raised once
        assert checkpoints.steps() == []
        save(checkpoints, 2)
        assert checkpoints.steps() == [2]


def test_the_caller_is_told_and_goes_on(tmp_path, monkeypatch):
    told = []
    with Checkpoints(tmp_path, on_failure=lambda *args: told.append(args)) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            save(checkpoints, 1, 2)
        save(checkpoints, 3)
        assert checkpoints.steps() == [3]
    assert [step for step, _ in told] == [1, 2]
    for step, error in told:
        assert isinstance(error, CheckpointError)
        assert isinstance(error.__cause__, OSError)
        assert str(error) == f"{tmp_path / f'0000000{step}'}: cannot be written: {error_words()}"


def error_words():
    return os.strerror(errno.ENOSPC)


def test_the_end_of_the_context_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(v1, "save", fail)
    with pytest.raises(CheckpointError, match="No space"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jnp.ones(2), {})


def interrupted(checkpoints):
    checkpoints.save(1, jnp.ones(2), {})
    raise KeyboardInterrupt


def test_an_error_of_the_body_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(v1, "save", fail)
    with pytest.raises(KeyboardInterrupt) as error, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(interrupted(checkpoints), jnp.ones(2), {})
    assert error.value.__notes__ == [f"{tmp_path / '00000001'}: cannot be written: {error_words()}"]


@pytest.mark.parametrize("instead", ["nothing", "file"])
def test_the_folder_vanishes(instead, tmp_path):
    folder = tmp_path / "run"
    with Checkpoints(folder) as checkpoints:
        save(checkpoints, 1)
        shutil.rmtree(folder)
        if instead == "file":
            folder.write_text("a file")
        with pytest.raises(CheckpointError, match="run has vanished"):
            save(checkpoints, 2)
        assert checkpoints.steps() == []
        assert checkpoints.newest(never) is None
        folder.unlink(missing_ok=True)
        assert not folder.exists()
        folder.mkdir()
        save(checkpoints, 3)
        assert_is(checkpoints.load(), 3)


def test_the_folder_vanishes_while_it_is_written(tmp_path, monkeypatch):
    def vanish(_, content):
        shutil.rmtree(tmp_path / "run")
        original(_, content)

    original = module._commit
    monkeypatch.setattr(module, "_commit", vanish)
    with (
        pytest.raises(CheckpointError, match="No such file"),
        Checkpoints(tmp_path / "run") as checkpoints,
    ):
        save(checkpoints, 1)


def test_what_cannot_be_deleted_is_tried_again(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 1)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", fail)
            save(checkpoints, 2)
        assert checkpoints.steps() == [2]
        assert_is(checkpoints.load(), 2)
        save(checkpoints, 3)
        assert names(tmp_path) == committed(3)


# A full disk.


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with contextlib.suppress(FileNotFoundError):
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            yield folder
            subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    pytest.skip("a tmpfs cannot be mounted here")


def test_a_full_disk(small_disk):
    """Whatever space there is: the checkpoint before stays, and what fails leaves nothing."""
    noise = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    folder, filler, outcomes = small_disk / "run", small_disk / "filler", set()
    with Checkpoints(folder, keep=1) as checkpoints:
        save(checkpoints, 1)
        for blocks in (0, 1, 2, 4, 8, 12, 16, 24, 28, 32, 36, 40, 48, 64):
            filler.unlink(missing_ok=True)
            free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
            filler.write_bytes(bytes(free - 4096 * blocks))
            for step in (1, 2):
                try:
                    checkpoints.save(step, noise, {})
                    checkpoints.wait()
                    outcomes.add("written")
                    filler.unlink()
                    assert_same(checkpoints.load(step).into(noise), jnp.asarray(noise))
                    shutil.rmtree(folder)
                    folder.mkdir()
                    save(checkpoints, 1)
                    break
                except CheckpointError as error:
                    assert "No space left on device" in str(error)  # noqa: PT017
                    outcomes.add("full")
                    assert_is(checkpoints.load(), 1)
                    assert names(folder) in (committed(1), ["00000001.again", "00000001.json"])
        filler.unlink(missing_ok=True)
        save(checkpoints, 1, 2, 3)
        assert names(folder) == committed(3)
    assert outcomes == {"written", "full"}


QUOTA = """
    import resource, sys
    import numpy as np
    from dcjax.checkpoints import CheckpointError, Checkpoints

    small, large = np.arange(10), np.random.default_rng(0).normal(size=100_000)
    with Checkpoints(sys.argv[1], keep=1) as checkpoints:
        def save(step, tree):
            checkpoints.save(step, tree, {"step": step})
            checkpoints.wait()

        save(1, small)
        for limit in (1, 100, 10_000, 300_000):
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            for step in (1, 2):
                try:
                    save(step, large)
                    print("written")
                except CheckpointError as error:
                    print("refused", error)
            assert np.array_equal(checkpoints.load().into(small), small)
            assert checkpoints.steps() == [1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        save(1, small)
        save(2, large)
        assert np.array_equal(checkpoints.load().into(large), large)
        assert checkpoints.steps() == [2]
"""


def test_a_quota(tmp_path):
    """As RLIMIT_FSIZE sets it; in a process of its own, for it holds for all of it."""
    pytest.importorskip("resource")
    command = [sys.executable, "-c", textwrap.dedent(QUOTA), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    assert all(line.startswith("refused") and "File too large" in line for line in lines)
    assert len(names(tmp_path)) == 2


# Damage.


class Damage:
    """The checkpoints of the steps 1 and 2; that of step 2 is damaged, and mended again."""

    def __init__(self, folder):
        self.folder = folder
        with Checkpoints(folder) as checkpoints:
            save(checkpoints, 1, 2)
        self.checkpoints = checkpoints
        inner = (path for path in (folder / "00000002").rglob("*") if path.is_file())
        self.files = sorted([folder / "00000002.json", *inner])
        self.contents = {file: file.read_bytes() for file in self.files}

    def is_refused(self, file):
        """Whether it is, and as it should be; what comes back otherwise is what was saved."""
        error = None
        try:
            assert_is(self.checkpoints.load(), 2)
        except CheckpointError as refusal:
            error = refusal
        if error is None:
            return False
        assert error.file == file
        assert str(error).startswith(f"{file}: ")
        assert str(error).endswith("; load(1) is the one before")
        return True

    def falls_back(self, file):
        told = []
        assert_is(self.checkpoints.newest(told.append), 1)
        assert [error.file for error in told] == [file]

    def mend(self):
        for file, content in self.contents.items():
            if file.is_dir():
                shutil.rmtree(file)
            file.unlink(missing_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


@pytest.fixture(scope="module")
def damage(tmp_path_factory):
    return Damage(tmp_path_factory.mktemp("damage: "))  # an error's text has a colon too


def truncate(size):
    return lambda file, content: file.write_bytes(content[: size(len(content))])


def to_folder(file, content):
    file.unlink()
    (file / "inner").mkdir(parents=True)


def swap(file, content):
    """As long as before, and of another file."""
    file.write_bytes(bytes(reversed(content)))


DAMAGES = {
    "emptied": truncate(lambda size: 0),
    "half": truncate(lambda size: size // 2),
    "one byte less": truncate(lambda size: size - 1),
    "longer": lambda file, content: file.write_bytes(content + b"\0"),
    "deleted": lambda file, content: file.unlink(),
    "a folder": to_folder,
    "a link": lambda file, content: put(file, "link"),
    "zeros": lambda file, content: file.write_bytes(bytes(len(content))),
    "reversed": swap,
    "nested": lambda file, content: file.write_bytes(b"[" * 100_000),
    "no text": lambda file, content: file.write_bytes(b"\xff" * 100),
    "another JSON": lambda file, content: file.write_bytes(b'{"body": [], "digest": 3}'),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file(kind, damage):
    assert not damage.is_refused(None)
    for file in damage.files:
        try:
            DAMAGES[kind](file, damage.contents[file])
            if file.is_file() and file.read_bytes() == damage.contents[file]:
                continue  # nothing, less something
            if kind == "deleted" and file.suffix == ".json":
                assert damage.checkpoints.steps() == [1]  # it is no checkpoint any more
                continue
            assert damage.is_refused(file)
            damage.falls_back(file)
        finally:
            damage.mend()
    assert not damage.is_refused(None)


def test_flipped_bits(damage):
    """Of each file, in equal numbers: the small ones count as much as the large."""
    rng, count = np.random.default_rng(0), 0
    for file in damage.files:
        content = damage.contents[file]
        for place in rng.integers(0, max(len(content), 1) * 8, 50 if content else 0):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << int(place % 8)
            file.write_bytes(flipped)
            assert damage.is_refused(file), (file, place)
            count += 1
        damage.mend()
    assert count >= 400


def test_the_whole_folder_lost(damage):
    folder = damage.folder / "00000002"
    for instead in ("nothing", "file", "folder", "link"):
        try:
            shutil.rmtree(folder)
            if instead != "nothing":
                put(folder, instead)
            with pytest.raises(CheckpointError, match=r"00000002/.* is missing; load\(1\)"):
                damage.checkpoints.load()
            assert_is(damage.checkpoints.newest(lambda error: None), 1)
        finally:
            if instead in ("file", "link"):
                folder.unlink()
            damage.mend()


def test_the_error_says_what_is_wrong(damage):
    for file in damage.files:
        size = len(damage.contents[file])
        wrong = f"{file}: is not what was written: "
        if file.suffix != ".json":
            file.write_bytes(bytes(size + 3))
            with pytest.raises(CheckpointError) as error:
                damage.checkpoints.load()
            assert str(error.value).startswith(f"{wrong}{size + 3} bytes, expected {size}; load")
        if size:
            changed = damage.contents[file].replace(b"e", b"f")
            file.write_bytes(changed if file.suffix == ".json" else bytes(size))
            with pytest.raises(CheckpointError) as error:
                damage.checkpoints.load()
            assert str(error.value).startswith(wrong.removesuffix(": "))
        damage.mend()


def test_another_file_beside_them_changes_nothing(damage):
    for name in ("more", "state/more", "state/d/0", "state/ocdbt.process_1/manifest.ocdbt"):
        more = damage.folder / "00000002" / name
        more.parent.mkdir(parents=True, exist_ok=True)
        more.write_bytes(b"more")
        assert not damage.is_refused(None)
        more.unlink()


def test_the_checkpoint_of_another_step(tmp_path):
    """The files of one, given the name of another: with their digests right."""
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        shutil.copytree(tmp_path / "00000001", tmp_path / "00000002")
        shutil.copy(tmp_path / "00000001.json", tmp_path / "00000002.json")
        with pytest.raises(CheckpointError, match=r"00000002\.json: is of step 1; load\(1\)"):
            checkpoints.load()


def test_damage_while_it_is_read(tmp_path, monkeypatch):
    """Bytes that change after the files' digests were found right: those of the leaves differ."""
    original = v1.load

    def other(path, wanted):
        arrays = original(path, wanted)
        name = next(name for name, array in arrays.items() if array.shape == (3, 4))
        return {**arrays, name: arrays[name] ^ True}

    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        monkeypatch.setattr(v1, "load", other)
        with pytest.raises(CheckpointError, match=r"the leaf \['flags'\] is not what was saved"):
            checkpoints.load()
        monkeypatch.setattr(v1, "load", fail)
        with pytest.raises(CheckpointError, match=r"Orbax cannot read it: No space.* none"):
            checkpoints.load()


def test_all_damaged(tmp_path):
    told = []
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, 2)
        for file in tmp_path.glob("*.json"):
            file.write_text("{")
        with pytest.raises(CheckpointError, match=r"all checkpoints are damaged: steps \[1, 2\]"):
            checkpoints.newest(told.append)
        assert [error.file.name for error in told] == ["00000002.json", "00000001.json"]
        save(checkpoints, 1)  # a run that begins anew
        assert_is(checkpoints.newest(told.append), 1)


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(module, "_FORMAT", 2)
            save(checkpoints, 1)
        with pytest.raises(CheckpointError, match="has format 2, this version reads 1"):
            checkpoints.load()
    assert json.loads((tmp_path / "00000001.json").read_text())["body"]["format"] == 2
