"""The checkpoints of a run's stages: when, which, and what if the disk fails."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments.data import Dataset, Split
from experiments.run import checkpointing, workdir
from experiments.run import console as progress
from experiments.run import signals as stop
from experiments.settings.flags import Keeping

RECORD = {"progress": {}}


@pytest.fixture
def keeper(tmp_path):
    """Makes keepers of one workdir; what they say is in `said`."""
    said = []
    with workdir.opened(tmp_path, {}, said.append) as metrics:

        def made(how=None, dataset=None, settings=None):
            voice = progress.Voice(Console(quiet=True))
            voice.say = said.append
            return checkpointing.Keeper(
                tmp_path,
                how or Keeping(),
                settings or {},
                dataset or {},
                voice,
                metrics,
                stop.Stop(),
            )

        made.said = said
        yield made


def tree(step):
    return {"w": step * jnp.ones(3)}


def test_by_default_the_end_of_an_epoch_is_due(keeper):
    with keeper().opened("phase") as kept:
        assert kept.due(3, epoch_ends=True)
        assert not kept.due(2, epoch_ends=False)


def test_every_so_many_steps_wherever_an_epoch_ends(keeper):
    due = []
    with keeper(Keeping(checkpoint_every=4)).opened("phase") as kept:
        for step in range(1, 14):
            if kept.due(step, epoch_ends=step % 3 == 0):
                due.append(step)
                kept.save(step, tree(step), RECORD)
    assert due == [4, 8, 12]


def test_calls_of_whole_epochs_save_when_they_pass_a_mark(keeper):
    with keeper(Keeping(checkpoint_every=4)).opened("phase") as kept:
        due = []
        for step in range(3, 16, 3):
            if kept.due(step, epoch_ends=True):
                due.append(step)
                kept.save(step, tree(step), RECORD)
    assert due == [6, 9, 12]


def test_asked_to_stop_it_saves_and_stops(keeper):
    one = keeper()
    with one.opened("phase") as kept:
        assert not kept.due(2, epoch_ends=False)
        one.stop.asked = 15
        assert kept.due(2, epoch_ends=False)
        with pytest.raises(stop.Stopped, match="SIGTERM"):
            kept.save(2, tree(2), RECORD)
    with one.opened("phase") as kept:
        assert kept.found.step == 2


def test_a_damaged_one_is_named_and_the_one_before_taken(keeper, tmp_path):
    with keeper().opened("phase") as kept:
        for step in (1, 2):
            kept.save(step, tree(step), RECORD)
    for file in (tmp_path / "checkpoints" / "phase" / "00000002").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with keeper().opened("phase") as kept:
        np.testing.assert_array_equal(kept.found.into(tree(1))["w"], 1)
    assert "00000002" in keeper.said[0]
    assert "using the one before" in keeper.said[0]


def test_all_damaged_is_an_error_that_offers_to_start_anew(keeper, tmp_path):
    with keeper().opened("phase") as kept:
        kept.save(1, tree(1), RECORD)
    shutil.rmtree(tmp_path / "checkpoints" / "phase" / "00000001" / "state")
    with pytest.raises(workdir.WorkdirError, match=r"all checkpoints are damaged.*--fresh"):
        keeper().opened("phase").__enter__()


def test_other_data_are_refused(keeper):
    with keeper(dataset={"sha256": 1}).opened("phase") as kept:
        kept.save(1, tree(1), RECORD)
    with pytest.raises(workdir.WorkdirError, match=r"other data: .*1.* there, .*2.* here"):
        keeper(dataset={"sha256": 2}).opened("phase").__enter__()


def test_another_runs_or_stages_checkpoints_are_refused(keeper, tmp_path):
    here = {"seed": 0, "width": 32, "dataset": "folder:/here", "workdir": "here", "keep": 2}
    there = {"seed": 7, "width": 32, "dataset": "folder:/there", "workdir": "there", "keep": 9}
    with keeper(settings=here).opened("subnet-2") as kept:
        kept.save(1, tree(1), RECORD)
    folder = tmp_path / "checkpoints"
    for name in ("subnet-1", "finetune"):
        shutil.copytree(folder / "subnet-2", folder / name)
        words = f"{name} holds checkpoints of the stage subnet-2, expected {name}.*--fresh"
        with pytest.raises(workdir.WorkdirError, match=words):
            keeper(settings=here).opened(name).__enter__()
    with keeper(settings=there | {"seed": 0}).opened("subnet-2") as kept:
        assert kept.found.step == 1
    with pytest.raises(workdir.WorkdirError, match=r"subnet-2 holds") as error:
        keeper(settings=there).opened("subnet-2").__enter__()
    assert str(error.value).splitlines()[1:-1] == ["  --seed: 0 there, 7 here"]
    with pytest.raises(workdir.WorkdirError, match=r"--depth: absent there, 8 here"):
        keeper(settings=here | {"depth": 8}).opened("subnet-2").__enter__()


def test_another_number_of_threads_is_noted_once(keeper, monkeypatch):
    for name in ("a", "b"):
        with keeper().opened(name) as kept:
            kept.save(1, tree(1), RECORD)
    now = checkpointing.cpu_threads() + 1
    monkeypatch.setattr(checkpointing, "cpu_threads", lambda: now)
    again = keeper()
    for name in ("a", "b", "a"):
        with again.opened(name):
            pass
    (said,) = keeper.said
    assert f"began with {now - 1} CPU threads and goes on with {now}" in said


def test_lost_metrics_are_noted_once(keeper, tmp_path):
    one, file = keeper(), tmp_path / workdir.METRICS
    for name in ("a", "b"):
        with one.opened(name) as kept:
            for step in range(3):
                one.log(phase=name, step=step)
            kept.save(2, tree(2), RECORD)
            one.log(phase=name, step=3)
    with one.opened("a"), one.opened("b"):
        pass
    assert keeper.said == []
    assert len(file.read_text().splitlines()) == 6  # the lines of step 3 are to be repeated
    file.write_text("")
    with one.opened("a"), one.opened("b"):
        pass
    (said,) = keeper.said
    assert said == "note: metrics.jsonl was deleted or cut; its lost lines are not written again"


def test_a_full_disk_is_reported_and_training_goes_on(keeper, monkeypatch):
    from orbax.checkpoint import v1

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with keeper().opened("phase") as kept:
        kept.save(1, tree(1), RECORD)
        assert kept.before().step == 1  # written: it is done in the background
        with monkeypatch.context() as patch:
            patch.setattr(v1, "save", full)
            kept.save(2, tree(2), RECORD)
            kept.save(3, tree(3), RECORD)
            assert kept.before().step == 1
        kept.save(4, tree(4), RECORD)
        assert kept.before().step == 4
    assert [line.split(":")[1].strip() for line in keeper.said] == [
        "step 2 is not saved, training continues",
        "step 3 is not saved, training continues",
    ]
    assert all("No space left on device" in line for line in keeper.said)


def test_a_folder_that_cannot_be_made_is_named(keeper, tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(workdir.WorkdirError, match="cannot be written"):
        keeper().opened("phase").__enter__()


def test_the_fingerprint_is_of_every_pixel_and_label():
    def dataset(images, labels):
        split = Split(np.asarray(images, np.uint8), np.asarray(labels, np.int32))
        return Dataset("name", split, split, ("a", "b"), np.zeros(3), np.ones(3))

    base = checkpointing.fingerprint(dataset(np.zeros((2, 4, 4, 3)), [0, 1]))
    assert checkpointing.fingerprint(dataset(np.zeros((2, 4, 4, 3)), [0, 1])) == base
    other = np.zeros((2, 4, 4, 3))
    other[1, 3, 3, 2] = 1
    assert checkpointing.fingerprint(dataset(other, [0, 1])) != base
    assert checkpointing.fingerprint(dataset(np.zeros((2, 4, 4, 3)), [1, 0])) != base
