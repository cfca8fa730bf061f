"""The devices and the commit of a run, for its results."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax

from dcjax import training
from experiments.results.schema import Devices


def devices(used: Mapping[str, int]) -> Devices:
    """Describe the devices; `used` is how many of them each stage used."""
    here = jax.devices()
    return {
        "platform": here[0].platform,
        "kind": here[0].device_kind,
        "processor": processor(),
        "cpu_threads": cpu_threads(),
        "count": len(here),
        "physical": training.physical_devices(here),
        "used": dict(used),
    }


def cpu_threads() -> int:
    """Return the number of threads that JAX computes with on the CPU; results depend on it.

    They are as many as the processors that this process may use, unless a variable says otherwise.
    """
    for name in ("PJRT_NPROC", "NPROC"):
        if (said := os.environ.get(name, "")).isdecimal() and int(said):
            return int(said)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name and its widest vectors, if the system knows them.

    The name alone does not tell: virtual machines hide the generation.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    said = {key.strip(): value.split() for key, _, value in (line.partition(":") for line in lines)}
    name = " ".join(said.get("model name", ["unknown"]))
    vectors = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX"}
    widest = [vectors[flag] for flag in vectors if flag in said.get("flags", ())]
    return f"{name} with {widest[0]}" if widest else name


def commit() -> str:
    """Return the code's commit, with a `+` if the code was changed; "" if unknown."""
    code = [Path(training.__file__).parents[1], Path(__file__).parent]
    git = ["git", "-C", str(code[1])]
    try:
        found = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code], check=False)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip() + "+" * bool(same.returncode)


def memory() -> int:
    """Return the bytes in use: of the first accelerator, or of this process on the CPU.

    Where the system does not know the present size, it is the largest that the process had.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu" and (stats := device.memory_stats()):
        return stats["bytes_in_use"]
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
