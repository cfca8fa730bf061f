"""Checkpoints under kills: what was committed is there, exactly; then bits are flipped in it.

A child saves checkpoints without end and is killed with SIGKILL: at a random moment, or as it makes
its n-th file, folder, renaming or deletion. What it reported as written has to be there, and the
next child goes on in the same folder. The long form has 500 kills and 5,000 flips, or
DCJAX_SOAK_KILLS and DCJAX_SOAK_FLIPS; DCJAX_SOAK_SEED chooses them:

    python -m pytest -m long tests/test_checkpoints_soak.py

Run as a program, this file is the child's: the parent of children that it forks, for the imports
take longer than what is tested.
"""

import collections
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dcjax.checkpoints import CheckpointError, Checkpoints
from tests.long import SEED, short_and_long

KEEP = 2
# What Python tells of before it does it; TensorStore's own writes fall in between.
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree")


def values(step, child):
    """What the child of that number saves at that step."""
    rng = np.random.default_rng([step, child])
    weights = {f"w{i}": rng.normal(size=(50, 1 + 37 * i)).astype("f4") for i in range(4)}
    return {"step": np.int32(step), "key": jax.random.key(step), **weights}


def check(saved):
    """Whether it is what the child that its record names has saved at its step."""
    expected = values(saved.step, saved.record["child"])
    loaded = saved.into(expected)
    assert saved.record["step"] == saved.step
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        if a.dtype == b.dtype == expected["key"].dtype:
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return saved.step, saved.record["child"]


def never(error):
    raise AssertionError(f"a kill has damaged a checkpoint: {error}")


# The child.


def tell(*words):
    os.write(1, " ".join(map(str, (*words, "\n"))).encode())


def kill_at(folder, count):
    """This process dies as it is about to touch a file of the folder for the n-th time."""
    seen = 0

    def hook(event, args):
        nonlocal seen
        if event in EVENTS and args and str(args[0]).startswith(folder):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def save_on(folder, child, steps):
    """Go on from the newest, which is saved again; `steps` times."""
    with Checkpoints(folder, keep=KEEP) as checkpoints:
        newest = checkpoints.newest(never)
        first = 0 if newest is None else check(newest)[0]
        for step in range(first, first + steps):
            checkpoints.save(step, values(step, child), {"step": step, "child": child})
            checkpoints.wait()
            tell("committed", step, child)


def main(folder):
    from orbax.checkpoint import v1  # noqa: F401, now for all the children

    for line in sys.stdin:
        child, kind, number = line.split()
        process = os.fork()
        if process == 0:
            status = 1
            try:
                if kind == "event":
                    kill_at(folder, int(number))
                save_on(folder, int(child), int(number) if kind == "steps" else 10**6)
                status = 0
            finally:
                os._exit(status)
        if kind == "time":
            time.sleep(float(number))
            os.kill(process, signal.SIGKILL)
        tell("ended", os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


# Its parent.


class Children:
    """Runs them one after the other."""

    def __init__(self, folder):
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )

    def run(self, kind, number):
        """What it reported as committed, the step and its own number; and how it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.count += 1
        self.process.stdin.write(f"{self.count} {kind} {number}\n")
        self.process.stdin.flush()
        reported = []
        for line in self.process.stdout:
            word, *numbers = line.split()
            if word == "ended":
                return reported, int(numbers[0])
            reported.append((int(numbers[0]), int(numbers[1])))
        raise AssertionError(f"the children's parent has ended: {self.process.wait()}")

    def close(self):
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)


def left_behind(folder, steps):
    """In which state the kill has left the folder."""
    names = {path.name for path in folder.iterdir()}
    kinds = {
        "Orbax's draft": any("orbax-checkpoint-tmp" in name for name in names),
        "half a deletion": any(name.endswith(".deleted") for name in names),
        "the same step twice": len({name[:8] for name in names}) < len(names),
        "more than are kept": len(steps) > KEEP,
    }
    return [kind for kind, there in kinds.items() if there] or ["nothing"]


@pytest.fixture
def children(tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    children = Children(tmp_path)
    yield children
    children.close()


@short_and_long(4, 500, "DCJAX_SOAK_KILLS")
def test_kills(tmp_path, children, capsys, count):
    rng, states, least, saves = random.Random(SEED), [], None, 0
    children.run("steps", 2)
    with Checkpoints(tmp_path, keep=KEEP) as reader:
        for kill in range(count):
            before = check(reader.load())
            at = ("event", rng.randint(20, 400)) if kill % 2 else ("time", rng.uniform(0.1, 1.0))
            reported, status = children.run(*at)
            assert status == -signal.SIGKILL
            least = reported[-1] if reported else before
            saves += len(reported)
            newest = check(reader.load())
            assert newest >= least, f"{least} was committed, the newest is {newest}"
            # It has begun with the newest of before, and is at most at the one that it began last.
            assert newest[0] <= (least[0] + 1 if reported else before[0])
            for step in reader.steps():
                check(reader.load(step))
            assert len(reader.steps()) >= min(KEEP, newest[0] + 1)
            states += left_behind(tmp_path, reader.steps())
        reported, status = children.run("steps", 2 * KEEP)
        assert status == 0
        assert check(reader.load()) == reported[-1]
        assert reader.steps() == [step for step, _ in reported[-KEEP:]]
    assert left_behind(tmp_path, reader.steps()) == ["nothing"]
    assert len(list(tmp_path.iterdir())) == KEEP
    with capsys.disabled():
        left = ", ".join(f"{state} {n}" for state, n in collections.Counter(states).items())
        print(f"\n{count} kills after {saves} saves, 0 losses, 0 damaged; left behind: {left}")


@short_and_long(300, 5_000, "DCJAX_SOAK_FLIPS")
def test_flips(tmp_path, capsys, count):
    """One bit at a time, anywhere in the newest of two checkpoints."""
    rng = random.Random(SEED)
    with Checkpoints(tmp_path, keep=KEEP) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, values(step, 0), {"step": step, "child": 0})
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "0002" in str(path)]
    files = [path for path in files if path.stat().st_size]
    refused, target = 0, tmp_path / "00000002"
    for flip in range(count):
        file = files[flip % len(files)]
        content = file.read_bytes()
        bit = rng.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        told = []
        try:
            assert check(checkpoints.load()) == (2, 0)
        except CheckpointError as error:
            told.append(error)
        if told:
            refused += 1
            assert told[0].file == target
            assert "load(1) is the one before" in str(told[0])
            if flip % 10 == 0:
                newest = checkpoints.newest(told.append)
                assert newest is not None
                assert check(newest) == (1, 0)
                assert told[1].file == target
        file.write_bytes(content)
    assert refused > 0.3 * count
    assert check(checkpoints.load()) == (2, 0)
    with capsys.disabled():
        print(f"\n{count} flipped bits, {refused} refused, the others gave the saved values")


if __name__ == "__main__":
    main(sys.argv[1])
