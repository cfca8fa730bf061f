"""Failures of a save: full disks, vanished folders, killed saves; what else is in the folder."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1

from dcjax.checkpoints import CheckpointError, Checkpoints
from tests.saved import assert_is, assert_same, committed, everything, fail, names, never, put, save

# What else is in the folder.


def test_foreign_files_are_left_alone(tmp_path):
    foreign = ["a.json", "12", "000000012", "٠٠٠٠٠٠١٢", "x0000001", "00000001.json"]
    foreign += ["00000001.txt", "00000001.1.txt", "1", ".1", "-0000001", "00000001.x.deleted"]
    for name in foreign:
        (tmp_path / name).write_text("foreign")
    (tmp_path / "00000001.plots").mkdir()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.steps() == []
        save(checkpoints, 1, 2)
        assert checkpoints.steps() == [2]
        assert_is(checkpoints.newest(never), 2)
    assert names(tmp_path) == sorted([*foreign, "00000001.plots", *committed(2)])


def leave_behind(folder, step):
    """Make the folders that killed saves and deletions leave."""
    for name in (".orbax-checkpoint-tmp", ".1.orbax-checkpoint-tmp-12", ".deleted", ".2.deleted"):
        (folder / f"{step:08d}{name}" / "state").mkdir(parents=True)


def test_what_a_killed_save_leaves(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 3)
        for step in (1, 3, 4, 5):
            leave_behind(tmp_path, step)
        assert checkpoints.steps() == [3]
        assert_is(checkpoints.newest(never), 3)
        with pytest.raises(FileNotFoundError):
            checkpoints.load(4)
        save(checkpoints, 4)
        assert names(tmp_path) == committed(3, 4)
        save(checkpoints, 6, 7)
        assert names(tmp_path) == committed(6, 7)
        assert_is(checkpoints.load(), 7)


def test_what_a_killed_deletion_of_the_same_step_leaves(tmp_path):
    """Two checkpoints of one step: the newer one counts."""
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, everything(4), {"seed": 4})
        checkpoints.wait()
        shutil.copytree(tmp_path / "00000003", tmp_path / "aside")
        save(checkpoints, 3)
        assert names(tmp_path) == ["00000003.1", "aside"]
        (tmp_path / "aside").rename(tmp_path / "00000003")
        assert_is(checkpoints.load(), 3)
        save(checkpoints, 3)
        assert names(tmp_path) == ["00000003.2"]
        assert_is(checkpoints.load(), 3)


@pytest.mark.parametrize("name", ["00000002", "00000002.1", "00000002.deleted"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_stands_in_the_way(kind, name, tmp_path):
    """Files where folders should be, folders where files should be, links to nowhere."""
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 1)
        put(tmp_path / name, kind)
        save(checkpoints, 2)
        assert_is(checkpoints.load(), 2)
        assert len(names(tmp_path)) == 1
        put(tmp_path / name, kind)  # and what is to be deleted
        save(checkpoints, 3)
        assert names(tmp_path) == committed(3)


# Failures.


def test_the_next_save_raises(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(v1, "save", fail)
            checkpoints.save(1, jnp.ones(2), {})
            with pytest.raises(CheckpointError, match="No space") as error:
                checkpoints.save(2, jnp.ones(2), {})
        assert isinstance(error.value.__cause__, OSError)
        checkpoints.wait()  # it is raised once
        assert checkpoints.steps() == []
        save(checkpoints, 2)
        assert checkpoints.steps() == [2]


def test_the_caller_is_told_and_goes_on(tmp_path, monkeypatch):
    told = []
    with Checkpoints(tmp_path, on_failure=lambda *args: told.append(args)) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", fail)
            save(checkpoints, 1, 2)
        save(checkpoints, 3)
        assert checkpoints.steps() == [3]
    assert [step for step, _ in told] == [1, 2]
    for step, error in told:
        assert isinstance(error, CheckpointError)
        assert isinstance(error.__cause__, OSError)
        assert str(error) == f"{tmp_path / f'0000000{step}'}: cannot be written: {error_words()}"


def error_words():
    return os.strerror(errno.ENOSPC)


def test_the_end_of_the_context_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(v1, "save", fail)
    with pytest.raises(CheckpointError, match="No space"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jnp.ones(2), {})


def interrupted(checkpoints):
    checkpoints.save(1, jnp.ones(2), {})
    raise KeyboardInterrupt


def test_an_error_of_the_body_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(v1, "save", fail)
    with pytest.raises(KeyboardInterrupt) as error, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(interrupted(checkpoints), jnp.ones(2), {})
    assert error.value.__notes__ == [f"{tmp_path / '00000001'}: cannot be written: {error_words()}"]


@pytest.mark.parametrize("instead", ["nothing", "file"])
def test_the_folder_vanishes(instead, tmp_path):
    folder = tmp_path / "run"
    with Checkpoints(folder) as checkpoints:
        save(checkpoints, 1)
        shutil.rmtree(folder)
        if instead == "file":
            folder.write_text("a file")
        with pytest.raises(CheckpointError, match="run has vanished"):
            save(checkpoints, 2)
        assert checkpoints.steps() == []
        assert checkpoints.newest(never) is None
        folder.unlink(missing_ok=True)
        assert not folder.exists()
        folder.mkdir()
        save(checkpoints, 3)
        assert_is(checkpoints.load(), 3)


def test_the_folder_vanishes_while_it_is_written(tmp_path, monkeypatch):
    def vanish(*args, **options):
        original(*args, **options)
        shutil.rmtree(tmp_path / "run")

    original = v1.save
    monkeypatch.setattr(v1, "save", vanish)
    with (
        pytest.raises(CheckpointError, match="No such file"),
        Checkpoints(tmp_path / "run") as checkpoints,
    ):
        save(checkpoints, 1)


def test_what_cannot_be_deleted_is_tried_again(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 1)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", fail)
            save(checkpoints, 2)
        assert checkpoints.steps() == [2]
        assert_is(checkpoints.load(), 2)
        save(checkpoints, 3)
        assert names(tmp_path) == committed(3)


# A full disk.


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with contextlib.suppress(FileNotFoundError):
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            yield folder
            subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    pytest.skip("a tmpfs cannot be mounted here")


def test_a_full_disk(small_disk):
    """Whatever space there is: the checkpoint before stays, and what fails leaves nothing."""
    noise = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    folder, filler, outcomes = small_disk / "run", small_disk / "filler", set()
    with Checkpoints(folder, keep=1) as checkpoints:
        save(checkpoints, 1)
        for blocks in (0, 1, 2, 4, 8, 12, 16, 24, 28, 32, 36, 40, 48, 64):
            filler.unlink(missing_ok=True)
            free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
            filler.write_bytes(bytes(free - 4096 * blocks))
            for step in (1, 2):
                try:
                    checkpoints.save(step, noise, {})
                    checkpoints.wait()
                    outcomes.add("written")
                    filler.unlink()
                    assert_same(checkpoints.load(step).into(noise), jnp.asarray(noise))
                    shutil.rmtree(folder)
                    folder.mkdir()
                    save(checkpoints, 1)
                    break
                except CheckpointError as error:
                    assert "No space left on device" in str(error)  # noqa: PT017
                    outcomes.add("full")
                    assert_is(checkpoints.load(), 1)
                    assert names(folder) == committed(1)
        filler.unlink(missing_ok=True)
        save(checkpoints, 1, 2, 3)
        assert names(folder) == committed(3)
    assert outcomes == {"written", "full"}


QUOTA = """
    import resource, sys
    import numpy as np
    from dcjax.checkpoints import CheckpointError, Checkpoints

    small, large = np.arange(10), np.random.default_rng(0).normal(size=100_000)
    with Checkpoints(sys.argv[1], keep=1) as checkpoints:
        def save(step, tree):
            checkpoints.save(step, tree, {"step": step})
            checkpoints.wait()

        save(1, small)
        for limit in (1, 100, 10_000, 300_000):
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            for step in (1, 2):
                try:
                    save(step, large)
                    print("written")
                except CheckpointError as error:
                    print("refused", error)
            assert np.array_equal(checkpoints.load().into(small), small)
            assert checkpoints.steps() == [1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        save(1, small)
        save(2, large)
        assert np.array_equal(checkpoints.load().into(large), large)
        assert checkpoints.steps() == [2]
"""


def test_a_quota(tmp_path):
    """As RLIMIT_FSIZE sets it; in a process of its own, for it holds for all of it."""
    pytest.importorskip("resource")
    command = [sys.executable, "-c", textwrap.dedent(QUOTA), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    assert all(line.startswith("refused") and "File too large" in line for line in lines)
    assert len(names(tmp_path)) == 1
