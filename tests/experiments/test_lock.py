"""One run in a workdir at a time."""

import contextlib
import json
import os

import filelock
import pytest

from experiments.run.lock import locked
from experiments.run.workdir import WorkdirError


def hold(folder, member=None, said=None):
    return locked(folder, member, [].append if said is None else said.append)


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [(None, None, False), (None, 0, False), (0, None, False), (0, 0, False), (0, 1, True)],
)
def test_who_may_run_beside_whom(first, second, together, tmp_path):
    refusal = contextlib.nullcontext() if together else pytest.raises(WorkdirError)
    with hold(tmp_path, first), refusal as error, hold(tmp_path, second):
        pass
    if not together:
        assert f"another run (process {os.getpid()} on " in str(error.value)
    for member in (first, second):
        with hold(tmp_path, member):
            pass


def test_a_lock_that_a_killed_run_left_is_void_and_said_so(tmp_path):
    owner = tmp_path / ".lock.owner.json"
    owner.write_text(json.dumps({"pid": 123, "host": "there", "since": "yesterday"}))
    said = []
    with hold(tmp_path, said=said):
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    assert "(process 123 on there, since yesterday) was killed" in said[0]
    assert not owner.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": 1}'])
def test_an_owner_that_cannot_be_read_is_left_out(text, tmp_path):
    lock = filelock.FileLock(tmp_path / ".lock")
    lock.acquire()
    (tmp_path / ".lock.owner.json").write_text(text)
    with pytest.raises(WorkdirError, match="another run is using"), hold(tmp_path):
        pass
    lock.release()


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    with hold(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "a"):
        (tmp_path / "a" / "results.json").touch()
    assert (tmp_path / "a" / "results.json").exists()


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkdirError, match="cannot be written"), hold(tmp_path / "file"):
        pass
