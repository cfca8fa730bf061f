"""JAX for all tests: the CPU, with several devices, set before any test module starts it."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
