"""JAX for all tests and doctests: the CPU with several devices, set before anything starts it."""

import atexit
import importlib.util
import os
import shutil
import tempfile

# The tests compile many small programs and run each a few times: optimising them takes most of the
# time.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

# Tests compile the same programs again, and so do the processes of pytest-xdist: they share what is
# compiled, for one run of pytest. The user's cache is left alone.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dcjax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jaxtyping
import pytest

from tests import annotations

annotations.install()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# The site's settings need Sphinx. The benchmark compares with PyTorch where there is one.
collect_ignore = ["docs/conf.py"]
if importlib.util.find_spec("torch") is None:
    collect_ignore.append("experiments/benchmark/torch_steps.py")


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file():
    """Forget the compiled programs after each file.

    Each takes about three memory maps, of which a Linux process has 65,530 by default: XLA crashes
    when all tests run in one process and none is forgotten.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def unchecked(monkeypatch):
    """For calls that accept more than their annotations say, or refuse it in a function below."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
