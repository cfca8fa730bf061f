"""One run in a workdir at a time."""

import contextlib
import os

import filelock
import pytest

from experiments.run.lock import locked
from experiments.run.workdir import WorkdirError


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [(None, None, False), (None, 0, False), (0, None, False), (0, 0, False), (0, 1, True)],
)
def test_who_may_run_beside_whom(first, second, together, tmp_path):
    refusal = contextlib.nullcontext() if together else pytest.raises(WorkdirError)
    with locked(tmp_path, first), refusal as error, locked(tmp_path, second):
        pass
    if not together:
        assert f"another run (process {os.getpid()} on " in str(error.value)
    for member in (first, second):
        with locked(tmp_path, member):
            pass


def test_what_a_killed_run_left_holds_nobody_up(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".lock.owner").write_text("process 123 on there, since yesterday")
    with locked(tmp_path, None):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock.owner").read_text()
    assert not (tmp_path / ".lock.owner").exists()


def test_a_run_that_is_refused_leaves_the_owner_of_the_other(tmp_path):
    with locked(tmp_path, 0):
        for member in (None, 0):
            with pytest.raises(WorkdirError), locked(tmp_path, member):
                pass
            assert [path.name for path in tmp_path.glob("*.owner")] == [".lock-0.owner"]
    assert not list(tmp_path.glob("*.owner"))


def test_an_owner_that_has_not_yet_written_its_number(tmp_path):
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(WorkdirError, match=r"another run .* is using"),
        locked(tmp_path, None),
    ):
        pass


@pytest.mark.parametrize("below", ["file", "file/run", "file/run/deep"])
def test_a_file_in_its_place_is_refused(below, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WorkdirError, match="cannot be written"), locked(tmp_path / below, None):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", [".lock", ".lock.owner"])
def test_what_cannot_be_written_is_found_by_writing(name, tmp_path):
    (tmp_path / name).mkdir()  # not even root writes to a folder
    with pytest.raises(WorkdirError, match="cannot be written"), locked(tmp_path, None):
        pass
