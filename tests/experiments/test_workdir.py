"""The folder of a run: never written over, never half made, never half read."""

import contextlib
import json
import math
import os
import shutil

import pytest

from experiments.run import workdir
from experiments.settings.flags import Settings
from experiments.settings.naming import flat

HERE = flat(Settings())
RESULTS = {"dataset": "digits"}


def finish(folder, settings=HERE):
    with workdir.opened(folder, settings, pytest.fail):
        workdir.finish(folder, RESULTS, settings)


def test_a_new_folder_takes_the_run_and_is_not_made_yet(tmp_path):
    assert workdir.finished(tmp_path / "a" / "b", HERE) is None
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_gives_its_results(tmp_path):
    finish(tmp_path)
    assert workdir.finished(tmp_path, HERE) == RESULTS


def opened(folder, part=""):
    return workdir.opened(folder, HERE, pytest.fail, part)


def lines(folder):
    entries = [json.loads(line) for line in (folder / workdir.METRICS).read_text().splitlines()]
    return [(entry["phase"], entry.get("step")) for entry in entries]


def test_lines_that_will_be_repeated_are_deleted(tmp_path):
    with opened(tmp_path) as log:
        for step in range(4):
            log(phase="a", step=step)
        log(phase="composed", seconds=1.0)
        log(phase="b", step=0)
    assert workdir.finished(tmp_path, HERE) is None
    with opened(tmp_path) as log:
        log.cut("a", 3)
        log.cut("composed", 0)
        log.cut("unknown", -1)
        assert log.lines == {"a": 4, "composed": 1, "b": 1}
        log.cut("b", -1)
        log.cut("a", 1)
        assert lines(tmp_path) == [("a", 0), ("a", 1), ("composed", None)]
        log(phase="a", step=2)
        assert log.lines == {"a": 3, "composed": 1}
        log.cut("composed", -1)
        assert lines(tmp_path) == [("a", 0), ("a", 1), ("a", 2)]


@pytest.mark.parametrize("length", range(0, 135, 5))
def test_a_file_cut_in_a_line_loses_that_line(length, tmp_path):
    with opened(tmp_path) as log:
        log(phase="a", step=1)
        log(phase="a", step=2)
    file = tmp_path / workdir.METRICS
    file.write_bytes(file.read_bytes()[:length])
    whole = file.read_bytes().count(b"\n")
    with opened(tmp_path) as log:
        assert log.lines["a"] == whole
        log(phase="a", step=3)
    assert lines(tmp_path) == [*[("a", 1), ("a", 2)][:whole], ("a", 3)]


DAMAGED = [
    b"\xff\xfe",
    b"",
    b"[]",
    b"3",
    b'{"phase": 1}',
    b'{"phase": "a", "step": []}',
    b"[" * 9999,
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_damaged_lines_stay_as_they_are(damaged, tmp_path):
    with opened(tmp_path) as log:
        log(phase="a", step=1)
    file = tmp_path / workdir.METRICS
    before = file.read_bytes() + damaged + b"\n"
    file.write_bytes(before + b"\0" * 100)  # as after a power cut
    with opened(tmp_path) as log:
        log(phase="a", step=2)
        log.cut("a", 1)
    assert file.read_bytes() == before


class Full:
    """A file on a disk that becomes full in the middle of a line, until it has room again."""

    def __init__(self, file):
        self.file, self.room = file, False

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, line):
        return self.file.write(line if self.room else line[: len(line) // 2])


def test_a_full_disk_costs_whole_lines_and_is_said_once(tmp_path, monkeypatch):
    said = []
    with workdir.opened(tmp_path, HERE, said.append) as log:
        log(phase="a", step=1)
        full = Full(log._file)
        monkeypatch.setattr(log, "_file", full)
        for full.room in (False, False, True):
            log(phase="a", step=2 + full.room)
    assert lines(tmp_path) == [("a", 1), ("a", 3)]
    (line,) = said
    assert "metrics.jsonl lacks lines, training continues: No space left" in line


@pytest.mark.parametrize("name", [workdir.SETTINGS, workdir.METRICS, workdir.RESULTS])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_not_a_file_is_refused_at_once(kind, name, tmp_path):
    finish(tmp_path)
    if name != workdir.RESULTS:
        (tmp_path / workdir.RESULTS).unlink()
    (tmp_path / name).unlink()
    if kind == "fifo":
        os.mkfifo(tmp_path / name)
    elif kind == "device":
        (tmp_path / name).symlink_to("/dev/full")
    else:
        (tmp_path / name).mkdir()
    refusal = pytest.raises(workdir.WorkdirError, match=r"cannot be|not the file settings\.json")
    with refusal, contextlib.ExitStack() as stack:
        workdir.finished(tmp_path, HERE)
        stack.enter_context(opened(tmp_path))


def test_a_subnetwork_by_itself_has_a_file_of_its_own(tmp_path):
    with opened(tmp_path, "-subnet-3") as log:
        log(epoch=1)
    assert not (tmp_path / workdir.METRICS).exists()
    assert "epoch" in (tmp_path / "metrics-subnet-3.jsonl").read_text()


def test_fresh_takes_any_settings_and_clears_only_its_own(tmp_path):
    finish(tmp_path)
    (tmp_path / "mine.txt").touch()
    (tmp_path / ".settings.json.123.tmp").touch()  # of a process that was killed while it wrote
    (tmp_path / "checkpoints" / "subnets").mkdir(parents=True)
    assert workdir.finished(tmp_path, HERE | {"seed": 7}, fresh=True) is None
    workdir.clear(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]


def test_fresh_is_no_leave_to_delete_a_stranger_s_files(tmp_path):
    (tmp_path / workdir.RESULTS).write_text("mine")
    with pytest.raises(workdir.WorkdirError, match=r"not the file settings\.json"):
        workdir.finished(tmp_path, HERE, fresh=True)


FILES = ["report.html", "model/README.md", "model/config.json", "checkpoints/subnets"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("settings", [None, '{"editor.tabSize": 2}', '{"subnets": 2, "seed": 0}'])
def test_fresh_needs_a_run_of_this_command(settings, name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    if settings:
        (tmp_path / workdir.SETTINGS).write_text(settings)
    said = "holds no settings of a run" if settings else f"holds {name} but not the file"
    with pytest.raises(workdir.WorkdirError, match=rf"{said}[^\n]*move .* away$"):
        workdir.finished(tmp_path, HERE, fresh=True)
    if settings or not name.startswith("checkpoints"):  # copied ones are compared
        with pytest.raises(workdir.WorkdirError, match=said):
            workdir.finished(tmp_path, HERE)


def test_fresh_leaves_other_files_in_the_folders_of_a_run(tmp_path):
    finish(tmp_path)
    written = [*FILES, "checkpoints/subnet-3", "checkpoints/finetune-process-1", "report.npz"]
    written += [
        "checkpoints/subnet-1-restart2",
        "model/subnets.safetensors",
        "metrics-subnet-3.jsonl",
    ]
    mine = [
        "checkpoints/best.pt",
        "model/weights.safetensors",
        "model/notes.md",
        "metrics-old.jsonl",
    ]
    mine += ["report.pdf", ".other.json.1.tmp", ".lock"]
    for name in written + mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.startswith("checkpoints/") and name not in mine:
            (tmp_path / name / "00000001").mkdir(parents=True)
        else:
            (tmp_path / name).touch()
    workdir.clear(tmp_path)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(mine)
    assert not (tmp_path / "checkpoints" / "subnets").exists()


def test_places_are_no_settings(tmp_path):
    finish(tmp_path)
    moved = HERE | {"workdir": "elsewhere", "data_dir": "elsewhere", "preset": "elsewhere"}
    assert workdir.finished(tmp_path, moved) == RESULTS


def test_other_settings_are_refused_with_both_values(tmp_path):
    finish(tmp_path)
    other = HERE | {"seed": 7, "width": 48}
    with pytest.raises(workdir.WorkdirError) as error:
        workdir.finished(tmp_path, other)
    assert "--seed: 0 there, 7 here" in str(error.value)
    assert "--width: 32 there, 48 here" in str(error.value)
    assert "Give another --workdir" in str(error.value)
    assert "learning-rate" not in str(error.value)


def test_settings_that_one_side_lacks_are_listed():
    assert workdir.differences({"a": 1}, {"b_c": 2}) == [
        "--b-c: absent there, 2 here",
        "--a: 1 there, absent here",
    ]


@pytest.mark.parametrize("name", [workdir.RESULTS, workdir.METRICS])
def test_strangers_are_not_written_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(workdir.WorkdirError, match=f"holds {name} but not the file settings.json"):
        workdir.finished(tmp_path, HERE)


def test_results_of_another_run_are_refused(tmp_path):
    finish(tmp_path / "a")
    finish(tmp_path / "b", HERE | {"seed": 1})
    shutil.copy(tmp_path / "b" / workdir.RESULTS, tmp_path / "a")
    with pytest.raises(workdir.WorkdirError, match=rf"--seed: 1 there, 0 here\n{AGAIN}"):
        workdir.finished(tmp_path / "a", HERE)


AGAIN = "Delete it: the same command writes it again from the checkpoints"


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 10**5])
@pytest.mark.parametrize(
    ("name", "remedy"), [(workdir.SETTINGS, "--workdir"), (workdir.RESULTS, AGAIN)]
)
def test_damaged_files_are_named(tmp_path, name, remedy, text):
    finish(tmp_path)
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(workdir.WorkdirError, match=f"{name} cannot be read: .*{remedy}"):
        workdir.finished(tmp_path, HERE)


def test_metrics_are_strict_json_lines_with_a_time(tmp_path):
    with opened(tmp_path) as log:
        log(phase="subnets", loss=[1.0, math.nan], cost=math.inf)
        (line,) = (tmp_path / workdir.METRICS).read_text().splitlines()  # there already
    entry = json.loads(line, parse_constant=pytest.fail)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {"phase": "subnets", "loss": [1.0, None], "cost": None}


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    workdir.finish(tmp_path, RESULTS, HERE)
    before = (tmp_path / workdir.RESULTS).read_text()
    with pytest.raises(TypeError):
        workdir.finish(tmp_path, {"not": object()}, HERE)
    assert (tmp_path / workdir.RESULTS).read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == [workdir.RESULTS]
