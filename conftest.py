"""JAX for all tests and doctests: the CPU with several devices, set before anything starts it."""

import importlib.util
import os

# The tests compile many small programs and run each a few times: optimising them takes most of the
# time. Level 1 compiles three to five times faster.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1"

# Nothing that tests compile is kept in the user's cache.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# The benchmark compares with PyTorch where there is one; no test needs it.
collect_ignore = []
if importlib.util.find_spec("torch") is None:
    collect_ignore.append("experiments/benchmark/torch_steps.py")
