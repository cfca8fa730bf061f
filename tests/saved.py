"""What the tests of checkpoints save, and how they look at what is there."""

import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from dcjax.checkpoints import Checkpoint


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
    return [f"{step:08d}" for step in steps]


def fail(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_, **__):
    raise KeyboardInterrupt


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
