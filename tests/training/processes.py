"""Starts the processes of a job, on the CPU over gloo, and never waits for ever."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).parents[2]
ENDS_IN = 500  # seconds, on a machine that is busy with other things


def start(folder: Path, count: int, task: str, devices: int = 1) -> list[subprocess.Popen]:
    """Start `worker.py` in so many processes; each writes what it prints into the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    where["NPROC"] = "4"  # threads, on which the last bits depend
    started = []
    for number in range(count):
        args = [str(port), str(count), str(number), task, str(folder)]
        with (
            (folder / f"{number}.out").open("w") as out,
            (folder / f"{number}.err").open("w") as err,
        ):
            command = [sys.executable, str(WORKER), *args]
            started.append(
                subprocess.Popen(command, env=os.environ | where, cwd=ROOT, stdout=out, stderr=err)
            )
    return started


def end(started: Sequence[subprocess.Popen]) -> list[int]:
    """Wait for all, or kill them after a time; return their exit codes."""
    try:
        return [process.wait(ENDS_IN) for process in started]
    except subprocess.TimeoutExpired:
        return kill(started)
    finally:
        kill(started)


def kill(started: Sequence[subprocess.Popen]) -> list[int]:
    """Kill those that still run; return the exit codes of all."""
    for process in started:
        process.kill()
    return [process.wait() for process in started]
