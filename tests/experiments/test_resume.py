"""Runs that are killed or stopped, and gone on with, end as if left alone, bit for bit.

The long form has 50 kills at random moments, or DCJAX_SOAK_KILLS; DCJAX_SOAK_SEED chooses them:

    python -m pytest -m long -s tests/experiments/test_resume.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dcjax.checkpoints import Checkpoints
from experiments import cli
from tests.long import SEED, short_and_long

ROOT = Path(__file__).parents[2]
HANGS = 600  # seconds; far more than any of the processes needs on a busy machine
ARGS = [
    *("--dataset", "digits", "--train-size", "64", "--batch-size", "16"),
    *("--model", "cnn", "--subnets", "2", "--width", "8", "--depth", "5"),
    *("--subnet-epochs", "2", "--finetune-epochs", "2", "--baseline-epochs", "2"),
    *("--checkpoint-every", "1", "--evaluate-every", "3"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Processes share compiled programs (the root's conftest.py says where) and byte code."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("python")),
    }


@pytest.fixture(scope="module")
def begin(environment):
    """Starts the study in a process of its own."""

    def started(folder, *args):
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.cifar10", *ARGS, "--workdir", folder, *args],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return started


@pytest.fixture(scope="module")
def finish(begin):
    """Runs the study to its end; what it said."""

    def run(folder, *args):
        process = begin(folder, *args)
        said = process.communicate(timeout=HANGS)[1]
        assert process.returncode == cli.OK, said
        return said

    return run


@pytest.fixture(scope="module")
def alone(finish, tmp_path_factory):
    """The workdir of a run that was left alone."""
    folder = tmp_path_factory.mktemp("run") / "alone"
    finish(folder)
    return folder


def results(folder):
    """All that does not depend on the clock."""

    def timeless(value):
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if "seconds" not in k and k != "speedup"}
            return {k: timeless(v) for k, v in kept.items()}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    return timeless(json.loads((folder / "results.json").read_text()))


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [(entry["phase"], entry.get("epoch"), entry.get("accuracy")) for entry in entries]


def last(folder, name):
    """The bytes of a phase's last checkpoint."""
    with Checkpoints(folder / "checkpoints" / name) as checkpoints:
        step, _, leaves = checkpoints.load()
    import jax

    def plain(leaf):
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    return step, {name: plain(leaf) for name, leaf in leaves.items()}


def wait_for(file, process):
    """Until a file is there; it must come before the process ends."""
    while not file.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


def assert_same(folder, alone):
    assert results(folder) == results(alone)
    for name in ("subnets", "composed", "finetune", "baseline"):
        assert last(folder, name) == last(alone, name)


STOPS = [
    ("subnets", 3, signal.SIGTERM),
    ("finetune", 2, signal.SIGINT),
    ("baseline", 5, signal.SIGKILL),
]
MORE_STOPS = [
    ("subnets", 3, signal.SIGTERM),
    ("subnets", 8, signal.SIGKILL),
    ("composed", 0, signal.SIGKILL),
    *STOPS[1:],
]


@pytest.mark.parametrize("stops", [STOPS, pytest.param(MORE_STOPS, marks=pytest.mark.long)])
def test_stopped_in_every_phase_it_ends_as_if_left_alone(begin, finish, alone, tmp_path, stops):
    folder = tmp_path / "run"
    for phase, step, number in stops:
        process = begin(folder, "--keep", "20")
        wait_for(folder / "checkpoints" / phase / f"{step:08d}", process)
        process.send_signal(number)
        said = process.communicate(timeout=HANGS)[1]
        code = -number if number == signal.SIGKILL else cli.STOPPED + number
        assert process.returncode == code, said
        if number != signal.SIGKILL:
            name = signal.Signals(number).name
            assert said.splitlines()[-1].endswith(f"stopped by {name}; the same command continues")
    said = finish(folder)
    assert "baseline: continues from step" in said
    assert "sub-networks: epoch" not in said  # not trained again
    assert_same(folder, alone)
    assert metrics(folder) == metrics(alone)


def test_it_is_measured_within_epochs(alone):
    """Every third step and where epochs, of four, end; the sub-networks where epochs end."""
    epochs = {
        name: [e for n, e, _ in metrics(alone) if n == name] for name in ("subnets", "baseline")
    }
    assert epochs == {"subnets": [0, 1, 2], "baseline": [0, 0.75, 1, 1.5, 2]}
    results = json.loads((alone / "results.json").read_text())
    assert [entry["epoch"] for entry in results["finetune"]["curve"]] == [0, 0.75, 1, 1.5, 2]


@short_and_long(3, 50, "DCJAX_SOAK_KILLS")
def test_killed_at_random_moments_it_ends_as_if_left_alone(begin, finish, alone, tmp_path, count):
    print(f"DCJAX_SOAK_SEED={SEED}")
    folder, rng = tmp_path / "run", np.random.default_rng(SEED)
    kills = ended = 0
    while kills < count:
        process = begin(folder)
        owner = folder / ".lock.owner"
        # In the middle of the work, not of the imports. Killed after its last word, it is finished.
        while kills % 3 and not owner.exists() and process.poll() is None:
            time.sleep(0.002)
        try:
            said = process.communicate(timeout=rng.uniform(0, 12))[1]
            assert process.returncode == cli.OK, said
            ended += 1
            assert_same(folder, alone)
            folder = tmp_path / f"run{ended}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    finish(folder)
    assert_same(folder, alone)
    print(f"{kills} kills, {ended + 1} runs ended, 0 losses")


def test_one_trained_alone_is_collected_bitwise(begin, finish, alone, tmp_path):
    folder = tmp_path / "run"
    said = finish(folder, "--only-subnet", "1")
    assert "sub-network 1 is trained" in said
    assert not (folder / "results.json").exists()
    own = last(folder, "subnet-1")[1]
    for name, leaf in last(alone, "subnets")[1].items():
        assert own[name] == leaf[len(leaf) // 2 :]
    said = finish(folder)
    assert "sub-networks 0: epoch 2/2" in said
    assert "sub-networks 1: epoch" not in said
    there, expected = results(folder), results(alone)
    assert there["subnets_phase"].pop("curve") == []  # it is of sub-networks trained together
    assert expected["subnets_phase"].pop("curve")
    assert there.pop("devices")["used"]["subnets"] == 1  # each by itself
    assert expected.pop("devices")["used"]["subnets"] == 2
    assert there == expected
    for name in ("composed", "finetune", "baseline"):
        assert last(folder, name) == last(alone, name)


def test_another_runs_subnetwork_is_refused(begin, finish, tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    finish(there, "--only-subnet", "1", "--seed", "1")
    shutil.copytree(there / "checkpoints", here / "checkpoints")
    process = begin(here)
    said = process.communicate(timeout=HANGS)[1]
    assert process.returncode == cli.BAD_INPUT
    assert f"{here / 'checkpoints' / 'subnet-1'} holds checkpoints of a run with other" in said
    assert "--seed: 1 there, 0 here" in said


def test_a_second_run_in_the_same_workdir_is_refused_at_once(begin, tmp_path):
    folder = tmp_path / "run"
    first = begin(folder)
    wait_for(folder / ".lock.owner", first)
    while not (folder / ".lock.owner").read_text():
        time.sleep(0.01)
    for args in ([], ["--only-subnet", "0"], ["--fresh"]):
        second = begin(folder, *args)
        said = second.communicate(timeout=HANGS)[1]
        assert second.returncode == cli.BAD_INPUT
        assert f"another run (process {first.pid} on " in said
    assert first.poll() is None
    first.kill()
    first.communicate()


def test_two_subnetworks_may_be_trained_at_once_but_not_beside_the_whole(begin, tmp_path):
    folder = tmp_path / "run"
    one = begin(folder, "--only-subnet", "0")
    wait_for(folder / ".lock-0.owner", one)
    whole = begin(folder)
    assert "another run" in whole.communicate(timeout=HANGS)[1]
    other = begin(folder, "--only-subnet", "1")
    wait_for(folder / ".lock-1.owner", other)
    for process in (one, other):
        said = process.communicate(timeout=HANGS)[1]
        assert process.returncode == cli.OK, said


def test_other_settings_are_refused_by_name(begin, alone):
    process = begin(alone, "--width", "16", "--precision", "bfloat16")
    said = process.communicate(timeout=HANGS)[1]
    assert process.returncode == cli.BAD_INPUT
    assert "--width: 8 there, 16 here" in said
    assert "--precision: auto there, bfloat16 here" in said
    assert "--fresh" in said


def test_fresh_starts_anew(finish, alone, tmp_path):
    folder = tmp_path / "run"
    said = finish(folder, "--only-subnet", "0")
    (folder / "mine.txt").write_text("kept")
    said = finish(folder, "--fresh")
    assert "sub-networks: epoch 1/2" in said
    assert (folder / "mine.txt").read_text() == "kept"
    assert not (folder / "checkpoints" / "subnet-0").exists()
    assert_same(folder, alone)
