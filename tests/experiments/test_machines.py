"""Runs in several real processes: the command, as a user gives it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import cli
from experiments.run import machines
from experiments.settings import naming, validate
from experiments.settings.flags import Keeping, Machines, Settings

ROOT = Path(__file__).parents[2]
WHERE = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "NPROC": "2"}
ENDS_IN = 500  # seconds, on a machine that is busy with other things
ARGS = [
    *("--dataset", "digits", "--train-size", "64", "--batch-size", "16"),
    *("--model", "cnn", "--subnets", "2", "--width", "8", "--depth", "5"),
    *("--subnet-epochs", "2", "--finetune-epochs", "2", "--baseline-epochs", "1"),
    *("--learning-rate", "0.05"),
]
RARELY = ["--average-every", "3", "--outer-rate", "0.7"]


def start(folder, count, *args, each=lambda number: ()):
    """Start the command in so many processes, which write what they say beside the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(count):
        join = ["--coordinator", f"127.0.0.1:{port}", "--processes", count, "--process", number]
        command = ["-m", "experiments.cifar10", *ARGS, "--workdir", folder, *args, *each(number)]
        with open(f"{folder}.{number}", "w") as said:
            started.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command), *(map(str, join) if count > 1 else ())],
                    env=os.environ
                    | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "NPROC": "2"},
                    cwd=ROOT,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def end(started, seconds=ENDS_IN):
    """Wait for all, or kill them after a time; return their exit codes."""
    try:
        for process in started:
            process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in started:
            process.kill()
    return [process.wait() for process in started]


def results(folder):
    return json.loads((folder / "results.json").read_text())


def said(folder, number):
    return Path(f"{folder}.{number}").read_text()


def finish(folder, count, *args):
    codes = end(start(folder, count, *args))
    assert not any(codes), "\n\n".join(said(folder, number) for number in range(count))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run in one process and in two."""
    root = tmp_path_factory.mktemp("runs")
    for count in (1, 2):
        finish(root / str(count), count)
    return root


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run in two processes whose copies are averaged every three steps."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    finish(folder, 2, *RARELY)
    return folder


def test_two_processes_end_in_the_results_of_one(runs):
    one, two = results(runs / "1"), results(runs / "2")
    assert two["subnets_phase"]["accuracy"] == one["subnets_phase"]["accuracy"]
    for stage in ("finetune", "baseline"):
        assert two[stage]["cost"] == pytest.approx(one[stage]["cost"], rel=1e-3)
    assert two["devices"]["used"]["subnets"] == 2
    assert two["composed"]["feature_error"] < 1e-5


@pytest.mark.long
def test_copies_in_two_processes_end_in_the_results_of_those_in_one(averaged, tmp_path):
    finish(tmp_path / "run", 1, *RARELY)
    one, two = results(tmp_path / "run"), results(averaged)
    assert two["finetune"]["cost"] == pytest.approx(one["finetune"]["cost"], rel=1e-3)


def test_process_0_alone_speaks_and_writes(runs):
    assert "fine-tuning: epoch 2/2" in said(runs / "2", 0)
    lines = [line for line in said(runs / "2", 1).splitlines() if "Gloo" not in line]
    assert lines == []
    folder = runs / "2"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        *("baseline", "composed", "finetune", "subnet-0", "subnet-1")
    ]


@pytest.mark.long
def test_a_finished_run_is_shown_again(runs):
    assert end(start(runs / "2", 2)) == [0, 0]
    assert "this run is finished" in said(runs / "2", 0)


def undisturbed(folder, reference):
    """Compare all numbers of a run but its times with those of an undisturbed one."""
    there, here = results(reference), results(folder)
    for stage in ("finetune", "baseline"):
        curves = [
            [(entry["epoch"], entry["accuracy"], entry["cost"]) for entry in each[stage]["curve"]]
            for each in (here, there)
        ]
        assert curves[0] == curves[1]
    for name in ("accuracy", "cost"):
        assert here["subnets_phase"][name] == there["subnets_phase"][name]


def kill(folder, started, victim, file):
    """Kill one of two processes once a file is there; the other has to end by itself."""
    other = started[1 - victim]
    while not [*(folder / "checkpoints").glob(file)]:
        assert other.poll() is None, said(folder, 1 - victim)
        time.sleep(0.05)
    started[victim].kill()
    assert end([other], 120) == [machines.LOST_PEER], said(folder, 1 - victim)
    assert said(folder, 1 - victim).count("because another one has died") == 1
    end(started)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(runs, tmp_path, victim):
    folder = tmp_path / "run"
    kill(folder, start(folder, 2, "--checkpoint-every", "1"), victim, "finetune/0*")
    finish(folder, 2, "--checkpoint-every", "1")
    undisturbed(folder, runs / "2")


@pytest.mark.parametrize("flags", [(), pytest.param(RARELY, marks=pytest.mark.long)])
@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, number, flags):
    folder = tmp_path / "run"
    started = start(folder, 2, *flags, "--finetune-epochs", "500")
    while not [*(folder / "checkpoints").glob("finetune/0*")]:
        assert started[0].poll() is None, said(folder, 0)
        time.sleep(0.05)
    started[number].send_signal(signal.SIGTERM)
    assert end(started, 120) == [cli.STOPPED + signal.SIGTERM] * 2, said(folder, 0)
    assert "stopped by SIGTERM; the same command continues" in said(folder, 0)
    assert "stopped" not in said(folder, 1)
    if flags:
        saved = [
            {path.name for path in (folder / "checkpoints" / name).iterdir()}
            for name in ("finetune", "finetune-process-1")
        ]
        assert max(saved[0]) == max(saved[1])


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_among_its_sub_networks_goes_on(runs, tmp_path, victim):
    folder = tmp_path / "run"
    started = start(folder, 2, "--checkpoint-every", "1")
    kill(folder, started, victim, f"subnet-{victim}/0*")
    finish(folder, 2)
    assert f"sub-networks {victim}: continues from step" in said(folder, 0) or victim
    undisturbed(folder, runs / "2")


@pytest.mark.long
def test_four_processes_killed_in_both_stages_end_in_the_results_of_one(runs, tmp_path):
    """Two of them have no sub-network."""
    folder, often = tmp_path / "run", ("--checkpoint-every", "1")
    for victim, file in ((1, "subnet-0/0*"), (2, "finetune/0*")):
        started = start(folder, 4, *often)
        while not [*(folder / "checkpoints").glob(file)]:
            assert started[0].poll() is None, said(folder, 0)
            time.sleep(0.05)
        started[victim].kill()
        codes = end(started, 120)
        assert [code for code in codes if code != -9] == [machines.LOST_PEER] * 3
    finish(folder, 4, *often)
    one, here = results(runs / "1"), results(folder)
    assert here["subnets_phase"]["accuracy"] == one["subnets_phase"]["accuracy"]
    for stage in ("finetune", "baseline"):
        assert here[stage]["cost"] == pytest.approx(one[stage]["cost"], rel=1e-3)


@pytest.mark.long
def test_a_second_job_in_the_same_workdir_is_refused(tmp_path):
    folder = tmp_path / "run"
    first = start(folder, 2)
    while not (folder / "settings.json").exists():
        assert first[0].poll() is None, said(folder, 0)
        time.sleep(0.05)
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert end(start(link, 2), 300) == [cli.BAD_INPUT, machines.LOST_PEER], said(link, 0)
    assert f"another run (process {first[0].pid} on" in said(link, 0)
    assert end(first) == [0, 0]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_copies_go_on_from_a_step_that_all_have_saved(averaged, tmp_path, victim):
    folder = tmp_path / "run"
    # When one has its third checkpoint, the other one has its first.
    started = start(folder, 2, *RARELY, "--checkpoint-every", "1")
    kill(folder, started, victim, "finetune/00000006")
    finish(folder, 2, *RARELY)
    assert "fine-tuning: continues from step" in said(folder, 0)
    undisturbed(folder, averaged)


@pytest.mark.long
def test_copies_do_not_go_on_in_another_number_of_processes(averaged, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(averaged, folder)
    (folder / "results.json").unlink()
    assert end(start(folder, 1, *RARELY)) == [cli.BAD_INPUT]
    assert "the stage finetune in 2 processes, expected finetune" in said(folder, 0)


@pytest.mark.long
def test_a_run_goes_on_in_another_number_of_processes(runs, tmp_path):
    folder = tmp_path / "run"
    started = start(folder, 2)
    while not [*(folder / "checkpoints").glob("finetune/0*")]:
        time.sleep(0.05)
    for process in started:
        process.kill()
    end(started)
    assert end(start(folder, 1)) == [0]
    assert results(folder)["finetune"]["cost"] == pytest.approx(
        results(runs / "1")["finetune"]["cost"], rel=1e-3
    )


def test_other_settings_in_a_process_are_refused(tmp_path):
    folder = tmp_path / "run"
    codes = end(start(folder, 2, each=lambda number: ["--seed", number]), 120)
    assert codes == [machines.LOST_PEER, cli.BAD_INPUT], said(folder, 0) + said(folder, 1)
    assert "seed: 0 in process 0, 1 here" in said(folder, 1)


def test_a_process_that_does_not_come_is_said(tmp_path):
    folder = tmp_path / "run"
    started = start(folder, 2, "--join-seconds", "5")
    started[1].kill()
    assert end(started, 120)[0] == machines.LOST_PEER
    assert "did not come together within 5 s" in said(folder, 0)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (Machines(coordinator="a:1", processes=2), "need all of --coordinator"),
        (Machines(coordinator="a:1", processes=2, process=2), "expected one from 0 to 1"),
        (Machines(coordinator="a", processes=2, process=0), "expected HOST:PORT"),
        (Machines(coordinator="a:1", processes=3, process=0), "a multiple of --processes 3"),
        (Machines(distributed=True, process=0), "--distributed finds"),
    ],
)
def test_flags_that_do_not_fit_are_refused(chosen, words):
    assert words in "\n".join(validate.problems(Settings(machines=chosen)))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"average_every": 200}, "--average-every 200: the stage has 156 steps; give at most 156"),
        ({"average_every": 156}, ""),
        ({"average_every": 0}, ""),
        ({"average_every": 200, "finetune_epochs": 0}, ""),
        ({"baseline_average_every": 500}, "--baseline-average-every 500: the stage has 468 steps"),
    ],
)
def test_averages_that_would_never_be_taken_are_refused(flags, words):
    chosen = naming.changed(Settings(), flags)
    found = "\n".join(validate.data_problems(chosen, (10_000, 32, 32, 3)))
    assert words in found if words else not found


def test_an_outer_step_needs_averages():
    chosen = naming.changed(Settings(), {"outer_rate": 0.7})
    assert "--outer-rate 0.7: a step after averages" in "\n".join(validate.problems(chosen))


def test_only_subnet_joins_nobody():
    chosen = Settings(machines=Machines(distributed=True), keeping=Keeping(only_subnet=1))
    assert "--only-subnet needs no other" in "\n".join(validate.problems(chosen))
