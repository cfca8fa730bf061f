"""What is set before JAX starts, in a process of its own."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
from experiments.run import startup
startup.start_jax(3)
import jax, resource, jax.numpy as jnp
print(len(jax.devices("cpu")), jax.config.jax_compilation_cache_dir)
step = jax.jit(lambda x: jnp.sin(x).reshape(2, -1))
x = jnp.ones(2**24)
for _ in range(8):
    jax.block_until_ready(step(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    jax.block_until_ready(step(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def started(**env):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    ran = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=inherited | {"JAX_PLATFORMS": "cpu"} | env,
    )
    first, faults = ran.stdout.splitlines()
    devices, cache = first.split(" ", 1)
    return int(devices), cache, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_host_devices_cache_and_memory_that_stays(tmp_path):
    devices, cache, faults = started(XDG_CACHE_HOME=str(tmp_path))
    assert devices == 3
    assert cache == str(tmp_path / "dcjax")
    written = 40 * 2**24 * 4 // 4096  # pages
    assert faults < written / 10


def test_the_user_s_own_cache_is_kept(tmp_path):
    assert started(JAX_COMPILATION_CACHE_DIR=str(tmp_path))[1] == str(tmp_path)
