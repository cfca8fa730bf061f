"""Damaged checkpoints: each is refused or right, and the one before is found."""

import shutil

import numpy as np
import pytest
from orbax.checkpoint import v1

from dcjax._files import manifest
from dcjax.checkpoints import CheckpointError, Checkpoints
from tests.saved import assert_is, fail, never, put, save


class Damage:
    """The checkpoints of the steps 1 and 2; that of step 2 is damaged, and mended again."""

    def __init__(self, folder):
        self.folder = folder
        with Checkpoints(folder) as checkpoints:
            save(checkpoints, 1, 2)
        self.checkpoints = checkpoints
        self.target = folder / "00000002"
        self.files = sorted(path for path in self.target.rglob("*") if path.is_file())
        self.contents = {file: file.read_bytes() for file in self.files}

    def is_refused(self):
        """Whether it is, and as it should be; what comes back otherwise is what was saved."""
        error = None
        try:
            assert_is(self.checkpoints.load(), 2)
        except CheckpointError as refusal:
            error = refusal
        if error is None:
            return False
        assert error.file == self.target
        assert str(error).startswith(f"{self.target}: is damaged: ")
        assert str(error).endswith("; load(1) is the one before")
        return True

    def falls_back(self):
        told = []
        assert_is(self.checkpoints.newest(told.append), 1)
        assert [error.file for error in told] == [self.target]

    def mend(self):
        for file, content in self.contents.items():
            if file.is_dir():
                shutil.rmtree(file)
            file.unlink(missing_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


@pytest.fixture(scope="module")
def damage(tmp_path_factory):
    return Damage(tmp_path_factory.mktemp("damage: "))  # an error's text has a colon too


def truncate(size):
    return lambda file, content: file.write_bytes(content[: size(len(content))])


def to_folder(file, content):
    file.unlink()
    (file / "inner").mkdir(parents=True)


def swap(file, content):
    """As long as before, and of another file."""
    file.write_bytes(bytes(reversed(content)))


DAMAGES = {
    "emptied": truncate(lambda size: 0),
    "half": truncate(lambda size: size // 2),
    "one byte less": truncate(lambda size: size - 1),
    "longer": lambda file, content: file.write_bytes(content + b"\0"),
    "deleted": lambda file, content: file.unlink(),
    "a folder": to_folder,
    "a link": lambda file, content: put(file, "link"),
    "zeros": lambda file, content: file.write_bytes(bytes(len(content))),
    "reversed": swap,
    "nested": lambda file, content: file.write_bytes(b"[" * 100_000),
    "no text": lambda file, content: file.write_bytes(b"\xff" * 100),
    "another JSON": lambda file, content: file.write_bytes(b'{"body": [], "digest": 3}'),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file(kind, damage):
    assert not damage.is_refused()
    refused = 0
    for file in damage.files:
        try:
            DAMAGES[kind](file, damage.contents[file])
            if damage.is_refused():
                refused += 1
                damage.falls_back()
        finally:
            damage.mend()
    assert refused >= (1 if kind == "longer" else 3)
    assert not damage.is_refused()


def test_flipped_bits(damage):
    """Of each file, in equal numbers: the small ones count as much as the large."""
    rng, count, refused = np.random.default_rng(0), 0, 0
    for file in damage.files:
        content = damage.contents[file]
        for place in rng.integers(0, max(len(content), 1) * 8, 50 if content else 0):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << int(place % 8)
            file.write_bytes(flipped)
            refused += damage.is_refused()
            count += 1
        damage.mend()
    assert count >= 400
    assert refused >= 100


def test_the_whole_folder_lost(damage):
    folder = damage.folder / "00000002"
    for instead in ("nothing", "file", "folder", "link"):
        try:
            shutil.rmtree(folder)
            if instead != "nothing":
                put(folder, instead)
            if instead == "folder":
                assert damage.is_refused()
                damage.falls_back()
            else:  # not a checkpoint
                assert_is(damage.checkpoints.newest(never), 1)
        finally:
            if instead in ("file", "link"):
                folder.unlink()
            damage.mend()


def test_another_file_beside_them_changes_nothing(damage):
    for name in ("more", "state/more", "state/d/0", "state/ocdbt.process_1/manifest.ocdbt"):
        more = damage.folder / "00000002" / name
        more.parent.mkdir(parents=True, exist_ok=True)
        more.write_bytes(b"more")
        assert not damage.is_refused()
        more.unlink()


def test_the_checkpoint_of_another_step(tmp_path):
    """The files of one, given the name of another: with their digests right."""
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        shutil.copytree(tmp_path / "00000001", tmp_path / "00000002")
        with pytest.raises(CheckpointError, match=r"00000002: is damaged: is of step 1; load\(1\)"):
            checkpoints.load()


def test_other_values(tmp_path, monkeypatch):
    """Orbax returns other values, or fails."""
    original = v1.load

    def other(path):
        changed = original(path)["file"].copy()
        changed[200] ^= 1
        return {"file": changed}

    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        monkeypatch.setattr(v1, "load", other)
        with pytest.raises(CheckpointError, match=r"is damaged: Bad CRC-32"):
            checkpoints.load()
        monkeypatch.setattr(v1, "load", fail)
        with pytest.raises(CheckpointError, match=r"is damaged: No space.* none"):
            checkpoints.load()


def test_all_damaged(tmp_path):
    told = []
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, 2)
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder / "state")
        with pytest.raises(CheckpointError, match=r"all checkpoints are damaged: steps \[1, 2\]"):
            checkpoints.newest(told.append)
        assert [error.file.name for error in told] == ["00000002", "00000001"]
        save(checkpoints, 1)  # a run that begins anew
        assert_is(checkpoints.newest(told.append), 1)


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "_VERSION", 2)
            save(checkpoints, 1)
        with pytest.raises(CheckpointError, match="not of version 1, which this dcjax reads"):
            checkpoints.load()
