"""A table that lives on a terminal, lines elsewhere, nothing where it is to be quiet."""

import errno
import io
import sys

import pytest
from rich.console import Console

from experiments.run import console as progress
from experiments.run.console import Expected

STAGES = {
    "subnets": Expected("sub-networks", 2, 1e9),
    "finetune": Expected("fine-tuning", 1, 4e9),
    "baseline": Expected("baseline", 0, 4e9),
}


@pytest.fixture
def clock(monkeypatch):
    """The time that the table sees; `clock[0]` is now."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def spoken(losses=(0.5, 0.25), width=60, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    voice = progress.Voice(console)
    voice.say("before [1/2]")
    with voice.living(STAGES, lambda: 3 * 2**29), voice.bar("sub-networks", 8) as advance:
        advance(4)
        voice.entry(phase="subnets", step=4, epoch=1, loss=list(losses), seconds=2.0)
        voice.progress("sub-networks: epoch 1/2")
        voice.say("within")
        advance(8)
    return console.file.getvalue()


def test_a_log_on_a_full_disk_ends_nothing():
    tried = []

    class Full(io.StringIO):
        def write(self, text):
            tried.append(text)
            raise OSError(errno.ENOSPC, "No space left on device")

    progress.Voice(Console(file=Full())).say("a line")
    assert tried


def test_lines_only_without_a_terminal():
    assert spoken(force_terminal=False) == "before [1/2]\nsub-networks: epoch 1/2\nwithin\n"


def test_a_terminal_has_a_table_in_place_of_the_lines_of_epochs():
    text = spoken(force_terminal=True)
    assert "sub-networks: epoch 1/2" not in text
    assert "within" in text
    assert "1/2" in text
    assert "0.250" in text
    assert "memory 1.5 GiB" in text


def test_silence():
    assert spoken(force_terminal=True, quiet=True) == ""


def lines(table, width=60):
    console = Console(file=io.StringIO(), width=width)
    console.print(table.shown())
    return [line[1:] for line in console.file.getvalue().splitlines()]


def row(found, start):
    (line,) = [line for line in found if line.startswith(start)]
    return line.removeprefix(start).split()


def test_the_table_fits_60_columns(clock):
    table = progress._Stages(STAGES, lambda: 2**30)
    stage = table.begin("sub-networks", 8)
    entry = {"phase": "subnets", "step": 4, "epoch": 1.0, "seconds": 5000.0}
    table.entry(entry | {"loss": [10.123] * 3, "accuracy": [0.4, 0.5, 0.6]})
    clock[0] += 1
    stage.advance(5)
    found = lines(table)
    assert max(map(len, found)) < 60
    assert not any("…" in line for line in found)
    assert row(found, "sub-networks")[:4] == ["1/2", "10.123", "50.00", "%"]
    assert row(found, "  sub-network 2") == ["10.123", "60.00", "%"]


def test_of_many_losses_the_mean_and_the_range_are_shown(clock):
    table = progress._Stages(STAGES, lambda: 0)
    table.begin("sub-networks", 8)
    losses = [n / 10 for n in range(16)]
    table.entry({"phase": "subnets", "step": 4, "epoch": 1, "seconds": 2.0, "loss": losses})
    found = lines(table)
    assert row(found, "sub-networks")[:2] == ["1/2", "0.750"]
    assert row(found, "  lowest") == ["0.000"]
    assert row(found, "  highest") == ["1.500"]
    assert not any("sub-network 0" in line for line in found)


def test_the_time_left_of_the_stage_and_of_the_whole_run(clock):
    table = progress._Stages(STAGES, lambda: 0)
    stage = table.begin("sub-networks", 8)
    assert "whole run" not in "".join(lines(table))  # nothing is known before the first step
    clock[0] += 3
    stage.advance(2)
    assert row(lines(table), "sub-networks")[-4:] == ["3.0", "s", "9.0", "s"]
    # 2 of 8 steps, a quarter of 2 GFLOP, took 3 s; 4 GFLOP of fine-tuning take 24 s.
    assert "whole run: about 33.0 s of training left" in "".join(lines(table))
    clock[0] += 9
    stage.advance(8)
    stage.finished = True
    tuned = table.begin("fine-tuning", 4)
    clock[0] += 2
    tuned.advance(1)
    assert "about 6.0 s of training left" in "".join(lines(table))


def test_evaluations_do_not_count_as_training(clock):
    table = progress._Stages(STAGES, lambda: 0)
    stage = table.begin("sub-networks", 8)
    clock[0] += 3
    stage.advance(4)
    clock[0] += 100  # evaluation
    assert "3.0 s" in " ".join(row(lines(table), "sub-networks"))
    table.entry({"phase": "subnets", "step": 4, "epoch": 1, "seconds": 3.0, "loss": [1.0]})
    assert stage.seconds == 3.0
    assert stage.left == 3.0


def test_a_stage_that_continues_counts_its_own_steps(clock):
    table = progress._Stages(STAGES, lambda: 0)
    stage = table._stages["subnets"]
    stage.advance(6)  # done by the run before
    table.begin("sub-networks", 8)
    clock[0] += 1
    stage.advance(7)
    assert stage.left == 1.0


def test_a_stage_that_was_not_expected_has_a_row(clock):
    table = progress._Stages({}, lambda: 0)
    table.begin("sub-networks 3", 8)
    table.entry({"phase": "subnet-3", "step": 4, "epoch": 1, "seconds": 2.0, "loss": [0.5]})
    assert row(lines(table), "sub-networks 3")[:2] == ["1/1", "0.500"]


def test_a_long_line_stays_one_line_without_a_terminal():
    console = Console(file=io.StringIO(), width=20, force_terminal=False)
    progress.Voice(console).say("x " * 50)
    assert console.file.getvalue().count("\n") == 1


def test_a_terminal_breaks_no_number():
    console = Console(file=io.StringIO(), width=20, force_terminal=True)
    progress.Voice(console).say("test accuracy 97.35 % after 12.0 s")
    assert "97.35 %" in console.file.getvalue()
    assert "12.0 s" in console.file.getvalue()


def test_force_color_draws_no_table_into_a_file(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    voice = progress.Voice(Console(stderr=True))
    with voice.living(STAGES, lambda: 0), voice.bar("sub-networks", 3) as advance:
        advance(3)
    assert "\x1b" not in stream.getvalue()


def test_characters_that_the_encoding_lacks_are_replaced(monkeypatch):
    file = io.BytesIO()
    stream = io.TextIOWrapper(file, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    progress.replace_unknown_characters()
    print("0.1 ≤ 0.2", flush=True)
    assert file.getvalue() == b"0.1 ? 0.2\n"
