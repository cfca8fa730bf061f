"""The folder of a run: never written over, never half made, never half read."""

import json
import math

import pytest

from experiments.run import workdir
from experiments.settings.flags import Settings
from experiments.settings.naming import flat

HERE = flat(Settings())
RESULTS = {"dataset": "digits"}


def finish(folder, settings=HERE):
    with workdir.opened(folder, settings):
        workdir.finish(folder, RESULTS)


def test_a_new_folder_takes_the_run_and_is_not_made_yet(tmp_path):
    assert workdir.finished(tmp_path / "a" / "b", HERE) is None
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_gives_its_results(tmp_path):
    finish(tmp_path)
    assert workdir.finished(tmp_path, HERE) == RESULTS


def epochs(folder):
    lines = (folder / workdir.METRICS).read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def test_an_unfinished_run_goes_on_behind_what_it_keeps(tmp_path):
    with workdir.opened(tmp_path, HERE) as log:
        log(epoch=1)
        kept = log.position()
        log(epoch=2)
    assert workdir.finished(tmp_path, HERE) is None
    with workdir.opened(tmp_path, HERE) as log:
        log.pass_over(kept)
        log.rewind()
        log(epoch="2 again")
    assert epochs(tmp_path) == [1, "2 again"]


def test_what_was_passed_over_stays(tmp_path):
    with workdir.opened(tmp_path, HERE) as log:
        log(epoch=1)
        log.pass_over(log.position())
        log(epoch=2)
        log.rewind()
        log(epoch=3)
        log.pass_over(["metrics-subnet-1.jsonl", 3])  # of another file: nothing is said of this one
        log.rewind()
        assert epochs(tmp_path) == [1]
        log(epoch=4)
        log.pass_over([workdir.METRICS, 10**6])  # behind the end: nothing to cut off
        log.rewind()
        assert epochs(tmp_path) == [1, 4]


def test_a_subnetwork_by_itself_has_a_file_of_its_own(tmp_path):
    with workdir.opened(tmp_path, HERE, 3) as log:
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
    with pytest.raises(workdir.WorkdirError, match=r"without settings\.json"):
        workdir.finished(tmp_path, HERE, fresh=True)


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
    with pytest.raises(workdir.WorkdirError, match=f"holds {name} without settings.json"):
        workdir.finished(tmp_path, HERE)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
@pytest.mark.parametrize("name", [workdir.SETTINGS, workdir.RESULTS])
def test_damaged_files_are_named(tmp_path, name, text):
    finish(tmp_path)
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(workdir.WorkdirError, match=name):
        workdir.finished(tmp_path, HERE)


def test_metrics_are_strict_json_lines_with_a_time(tmp_path):
    with workdir.opened(tmp_path, HERE) as log:
        log(phase="subnets", loss=[1.0, math.nan], cost=math.inf)
        (line,) = (tmp_path / workdir.METRICS).read_text().splitlines()  # there already
    entry = json.loads(line, parse_constant=pytest.fail)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {"phase": "subnets", "loss": [1.0, None], "cost": None}


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    workdir.finish(tmp_path, RESULTS)
    with pytest.raises(TypeError):
        workdir.finish(tmp_path, {"not": object()})
    assert json.loads((tmp_path / workdir.RESULTS).read_text()) == RESULTS
    assert [each.name for each in tmp_path.iterdir()] == [workdir.RESULTS]
