"""Settings before JAX starts: host devices, memory that is kept, the compilation cache."""

import contextlib
import ctypes
import functools
import os
import subprocess
import sys
from pathlib import Path

# mallopt's numbers in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


# JAX's options that a run has its own values of. Some are checks that libraries such as optax do
# not pass; others would change the results with the shell that a run is started from.
_FIXED = {
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_transfer_guard": "allow",
    "jax_debug_nans": False,  # a sub-network that diverges is reported, and the others continue
    "jax_debug_infs": False,
    "jax_disable_jit": False,
    "jax_check_tracer_leaks": False,
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
}


class StartError(Exception):
    """JAX cannot start; the message names the variables that may be why."""


def check_environment() -> None:
    """Start JAX in another process, if variables are set that could keep it from starting.

    XLA ends a process that has a flag it does not know, without an exception.

    Raises:
      StartError: JAX does not start.
    """
    names = sorted(name for name in os.environ if name.startswith(("JAX_", "XLA_FLAGS")))
    variables = ", ".join(f"{name}={os.environ[name]}" for name in names)
    if variables and (reason := _why_not(variables)):
        raise StartError(f"JAX does not start with {variables}: {reason}")


@functools.cache  # for as long as the variables are the same
def _why_not(variables: str) -> str:
    """Return the last line of a process that tried to start JAX; "" if it could."""
    tried = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    words = tried.stderr.strip() or f"exit code {tried.returncode}"
    last = words.splitlines()[-1] if tried.returncode else ""
    # JAX checks a platform that it does not have by an assertion without words.
    return "it does not find such a device" if last == "AssertionError" else last


def start_jax(cpu_devices: int) -> list[str]:
    """Import JAX, with so many host devices if it runs on the CPU.

    A backend that has started keeps its devices. Compiled programs are kept in the user's cache, or
    in JAX_COMPILATION_CACHE_DIR.

    Returns:
      The variables of the environment that are set and not followed.
    """
    keep_memory()
    import jax

    for name, value in _FIXED.items():
        jax.config.update(name, value)
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    # A user without a home directory has no cache.
    with contextlib.suppress(RuntimeError):
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            jax.config.update("jax_compilation_cache_dir", str(cache / "dcjax"))
    return [name.upper() for name in _FIXED if name.upper() in os.environ]


def keep_memory() -> bool:
    """Make the C library keep freed memory instead of returning it to the system.

    On the CPU, XLA allocates the intermediate results of each step again. With glibc's defaults
    their memory is mapped, cleared page by page and unmapped at every step. Call this before other
    threads start.

    Returns:
      Whether the C library has such a setting (only glibc).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    wishes = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1}
    return all(mallopt(option, value) for option, value in wishes.items())
