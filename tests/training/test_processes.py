"""Training in several real processes, over gloo."""

import hashlib
import time

import numpy as np
import pytest

from dcjax import training
from tests.training import processes

four = pytest.param(4, marks=pytest.mark.long)


def read(file):
    with np.load(file) as arrays:
        return dict(arrays)


def run(folder, count):
    """Do the method on four devices, in so many processes."""
    codes = processes.end(processes.start(folder, count, "method", devices=4 // count))
    errors = [file.read_text() for file in sorted(folder.glob("*.err"))]
    assert not any(codes), "\n\n".join(errors)


@pytest.fixture(scope="module", params=[2, four])
def job(request, tmp_path_factory):
    """The method, done by so many processes: their number and their folder."""
    folder = tmp_path_factory.mktemp("job")
    run(folder, request.param)
    return request.param, folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same in one process, whose thread pool is of the same size."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, 1)
    return [read(folder / f"{name}0.npz") for name in ("subnets", "finetuned", "averaged")]


def test_stage_1_is_bit_for_bit_that_of_one_process(job, alone):
    count, folder = job
    for number in range(count):
        np.testing.assert_equal(read(folder / f"subnets{number}.npz"), alone[0])


def test_all_compose_the_same_network(job, alone):
    count, folder = job

    def digest(outcome):
        leaves = [outcome[name] for name in sorted(outcome) if name.startswith("composed")]
        assert leaves
        return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()

    everyone = {digest(read(folder / f"finetuned{number}.npz")) for number in range(count)}
    assert everyone == {digest(alone[1])}


def test_stage_2_is_that_of_one_process_but_for_rounding(job, alone):
    count, folder = job
    outcomes = [read(folder / f"finetuned{number}.npz") for number in range(count)]
    for other in outcomes[1:]:
        np.testing.assert_equal(other, outcomes[0])
    assert outcomes[0].keys() == alone[1].keys()
    for name, leaf in outcomes[0].items():
        np.testing.assert_allclose(leaf, alone[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_rarely_averaged_copies_are_those_of_one_process_but_for_rounding(job, alone):
    count, folder = job
    outcomes = [read(folder / f"averaged{number}.npz") for number in range(count)]
    expected = dict(alone[2])
    losses = np.concatenate([outcome.pop("losses") for outcome in outcomes], axis=1)
    np.testing.assert_allclose(losses, expected.pop("losses"), rtol=1e-4)
    for outcome in outcomes:
        np.testing.assert_equal(outcome, outcomes[0])
        for name, leaf in outcome.items():
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "words",
    [
        "data: expected the same images and labels in every process; those of processes [1",
        "batch: {count} processes cannot share {odd} parts equally",
        "foreign: expected devices of this process, 0, got",
        "not taking part: expected devices of this process",
        "members: expected a leading axis of",
        "writer: {count} processes: give writer=0",
        "folder: folder='unused' keeps the checkpoints of one process, and this job has {count}",
    ],
)
def test_what_cannot_work_is_refused_in_every_process(job, words):
    count, folder = job
    for number in range(count):
        expected = words.format(count=count, odd=8 * count + 1)
        output = (folder / f"{number}.out").read_text()
        assert expected.replace("process, 0", f"process, {number}") in output


def test_sub_networks_of_a_joined_job_communicate_nothing(job):
    count, folder = job
    for number in range(count):
        output = (folder / f"{number}.out").read_text()
        assert "collectives among sub-networks: []" in output


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_one_message(tmp_path, victim):
    started = processes.start(tmp_path, 2, "forever")
    other = started[1 - victim]
    try:
        while len([*tmp_path.glob("*.pid")]) < 2:
            assert all(process.poll() is None for process in started)
            time.sleep(0.05)
        started[victim].kill()
        code = other.wait(60)
    finally:
        processes.kill(started)
    errors = (tmp_path / f"{1 - victim}.err").read_text()
    assert code == training.PEER_LOST, errors
    assert errors.count(f"process {1 - victim} of 2 ends, because another one has died") == 1
    assert "Traceback" not in errors
