"""What is set before JAX starts, in a process of its own."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.run import startup

ROOT = Path(__file__).parents[2]
CODE = """
from experiments.run import startup
startup.start_jax(3)
import jax
print(len(jax.devices("cpu")), jax.config.jax_compilation_cache_dir)
"""
STRICT = {
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_ENABLE_X64": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
}
FIXED = """
from experiments.run import startup
print(*startup.start_jax(1))
import jax, jax.numpy as jnp
print((jnp.ones((2, 2)) + jnp.ones(2)).dtype, jax.random.key_impl(jax.random.key(0)))
"""
NO_HOME = """
from pathlib import Path
def home():
    raise RuntimeError("Could not determine home directory.")
Path.home = home
"""
# The C library's own account of the memory that was freed and not given back to the system.
KEPT = """
import ctypes
from experiments.run import startup

names = ("arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost").split()
class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]

assert startup.keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes, libc.mallinfo2.restype = [ctypes.c_void_p], Mallinfo
before = libc.mallinfo2().fordblks
libc.free(libc.malloc(2**26))
print(libc.mallinfo2().fordblks - before)
"""


def started(code=CODE, **env):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=inherited | {"JAX_PLATFORMS": "cpu"} | env,
    )
    return ran.stdout.split()


def test_host_devices_and_cache(tmp_path):
    assert started(XDG_CACHE_HOME=str(tmp_path)) == ["3", str(tmp_path / "dcjax")]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 or newer")
def test_freed_memory_stays_with_the_process():
    assert int(started(KEPT)[0]) >= 2**26 * 0.99


def test_the_user_s_own_cache_is_kept(tmp_path):
    assert started(JAX_COMPILATION_CACHE_DIR=str(tmp_path))[1] == str(tmp_path)


def test_options_that_would_stop_a_run_or_change_its_results_are_not_followed():
    *named, dtype, generator = started(FIXED, **STRICT)
    assert {*named} == {*STRICT}
    assert (dtype, generator) == ("float32", "threefry2x32")


@pytest.mark.parametrize(
    ("name", "value"),
    [("XLA_FLAGS", "--xla_nonsense=1"), ("JAX_ENABLE_X64", "maybe"), ("JAX_PLATFORMS", "nonsense")],
)
def test_variables_with_which_jax_does_not_start_are_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(startup.StartError, match=f"{name}={value}.*: .*"):
        startup.check_environment()


def test_without_a_home_there_is_no_cache_of_programs():
    code = CODE.replace("startup.start_jax(3)", NO_HOME + "startup.start_jax(3)")
    assert started(code, XDG_CACHE_HOME="")[1] == "None"
