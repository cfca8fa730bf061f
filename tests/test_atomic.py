"""Files that replace others: whole, with their modes, through links, and nothing left behind."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from dcjax.atomic import replacing

WRITER = """
import sys
from dcjax.atomic import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


def write(path, data=b"new"):
    with replacing(path) as file:
        file.write(data)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def writer():
    """Starts processes that stop while they write a file."""
    started = []

    def start(path):
        command = [sys.executable, "-c", WRITER, path]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(command, **pipes))
        assert started[-1].stdout.readline() == b"writing\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_dead_writers_files_are_swept_and_no_others(writer, tmp_path):
    target, other = tmp_path / "a.npz", tmp_path / "b.npz"
    mine = [".a.npz.tmp", ".a.npz.mine.tmp", "a.npz.tmp", f".a.npz.{'0' * 32}.tmp.bak"]
    for name in mine:
        (tmp_path / name).touch()
    (tmp_path / f".a.npz.{'1' * 32}.tmp").symlink_to("/nowhere")
    (tmp_path / f".a.npz.{'2' * 32}.tmp").mkdir()
    os.mkfifo(tmp_path / f".a.npz.{'3' * 32}.tmp")
    kept = names(tmp_path)
    alive, elsewhere = writer(target), writer(other)
    for _ in range(2):
        killed = writer(target)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    elsewhere.kill()
    elsewhere.wait()
    assert len(names(tmp_path)) == len(kept) + 3  # a writer sweeps what those before have left
    write(target)
    assert len(names(tmp_path)) == len(kept) + 3
    assert alive.communicate(b"")[0] == b""
    assert target.read_bytes() == b"half"  # it was last
    write(other)
    assert names(tmp_path) == sorted([*kept, "a.npz", "b.npz"])


def many(path, number):
    for i in range(100):
        write(path, b"%d %d" % (number, i))


def test_writers_at_the_same_time_do_not_sweep_each_other(tmp_path):
    path = tmp_path / "a.npz"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=many, args=(path, number)) for number in range(3)]
    threads = [threading.Thread(target=many, args=(path, number)) for number in (3, 4)]
    for each in (*processes, *threads):
        each.start()
    for each in (*processes, *threads):
        each.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert path.read_bytes().endswith(b" 99")
    assert names(tmp_path) == ["a.npz"]


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    import fcntl

    real, swept = fcntl.flock, []

    def late(file, operation):
        if not swept:
            swept.extend(tmp_path.glob(".*.tmp"))
            swept[0].unlink()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write(tmp_path / "a.npz")
    assert swept
    assert (tmp_path / "a.npz").read_bytes() == b"new"


def test_file_systems_without_locks(tmp_path, monkeypatch):
    import fcntl

    def fail(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    left = tmp_path / f".a.npz.{'0' * 32}.tmp"
    left.touch()
    write(tmp_path / "a.npz")
    assert names(tmp_path) == [left.name, "a.npz"]  # its writer may be alive


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o666, 0o755, 0o444])
def test_the_mode_stays(mode, tmp_path):
    path = tmp_path / "a.npz"
    path.touch()
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "theirs").touch()
    write(tmp_path / "ours")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_group_stays(tmp_path):
    path = tmp_path / "a.npz"
    path.touch()
    os.chown(path, -1, 12345)
    write(path)
    assert path.stat().st_gid == 12345


def test_links_stay_and_lead_to_the_new_file(tmp_path):
    (tmp_path / "there").mkdir()
    target, link, chain = tmp_path / "there" / "a.npz", tmp_path / "link", tmp_path / "chain"
    link.symlink_to("there/a.npz")
    chain.symlink_to(link)
    for path in (link, chain, link):  # it leads nowhere at first
        write(path, path.name.encode())
        assert link.is_symlink()
        assert chain.is_symlink()
        assert not target.is_symlink()
        assert target.read_bytes() == path.name.encode()
    assert names(tmp_path / "there") == ["a.npz"]
    assert names(tmp_path) == ["chain", "link", "there"]


def test_another_name_of_the_file_keeps_the_old_one(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "a")
    assert (tmp_path / "b").read_bytes() == b"old"


def test_links_that_cannot_be_followed(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("no/folder")
    for name in ("loop", "nowhere"):
        with pytest.raises(OSError, match=r"loop|no/"):
            write(tmp_path / name)
        assert (tmp_path / name).is_symlink()


@pytest.mark.parametrize("kind", ["folder", "fifo", "link to a device"])
def test_what_is_not_a_file_is_refused_before_anything_is_written(kind, tmp_path):
    path = tmp_path / "a.npz"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(os.devnull)
    with pytest.raises(OSError, match=r"not a regular file.*a\.npz"), replacing(path):
        pytest.fail("opened")
    assert names(tmp_path) == ["a.npz"]
