"""Settings before JAX starts: host devices, memory that is kept, the compilation cache."""

import contextlib
import ctypes
import os
from pathlib import Path

# mallopt's numbers in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def start_jax(cpu_devices: int) -> None:
    """Import JAX, with so many host devices if it runs on the CPU.

    A backend that has started keeps its devices. Compiled programs are kept in the user's cache, or
    in JAX_COMPILATION_CACHE_DIR.
    """
    keep_memory()
    import jax

    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "dcjax"))


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
