"""What is set before JAX starts: host devices, memory that stays, compiled programs that stay."""

import contextlib
import ctypes
import os
from pathlib import Path

JOBS = "DCJAX_JOBS"
"""The environment variable by which a study tells a trial how many share the machine."""

# mallopt's numbers in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def start_jax(cpu_devices: int) -> None:
    """Import JAX with as many host devices where it runs on the CPU.

    The setting is the CPU backend's alone, and a backend that runs already keeps what it has.
    Compiled programs are kept in the user's cache (JAX_COMPILATION_CACHE_DIR says where else).

    Args:
      cpu_devices: the number of host devices.
    """
    keep_memory()
    import jax

    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "dcjax"))


def keep_memory() -> bool:
    """Have the C library keep freed memory instead of giving it back to the system.

    XLA takes the memory of a step's intermediate results anew at every step on the CPU. With
    glibc's defaults that is mapped, cleared page by page and unmapped again, all of it at every
    step. Must come before other threads start.

    Returns:
      Whether the C library can be told (glibc only).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    wishes = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1}
    return all(mallopt(option, value) for option, value in wishes.items())
