"""Trackers get every line of metrics as numbers, and never stop a run."""

import sys
import types

import pytest

from experiments.run import trackers, workdir


def fake(monkeypatch, name, **functions):
    calls = []

    def recorded(key):
        return functions.get(key) or (lambda *args, **kwargs: calls.append((key, args, kwargs)))

    names = ("init", "log", "finish")
    module = types.SimpleNamespace(**{key: recorded(key) for key in names})
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_get_the_settings_and_every_line(monkeypatch, tmp_path, name):
    calls = fake(monkeypatch, name)
    folder = tmp_path / "run"
    with (
        workdir.opened(folder, {"seed": 3}, print) as metrics,
        trackers.listening(name, folder, {"seed": 3}, print) as tracked,
    ):
        metrics.listeners += tracked
        metrics(phase="subnets", step=2, loss=[0.5, 0.25], accuracy=None)
    assert calls == [
        ("init", (), {"project": "dcjax", "name": "run", "config": {"seed": 3}}),
        ("log", ({"subnets/step": 2, "subnets/loss/0": 0.5, "subnets/loss/1": 0.25},), {}),
        ("finish", (), {}),
    ]
    assert (folder / "metrics.jsonl").read_text().count("\n") == 1


def test_no_tracker_is_the_default(tmp_path):
    with trackers.listening("none", tmp_path, {}, print) as tracked:
        assert tracked == []


def test_a_missing_package_is_said_with_its_name(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(trackers.TrackerError, match="pip install wandb"):
        trackers.make("wandb", tmp_path, {})


def test_a_service_that_does_not_start_is_said(monkeypatch, tmp_path):
    def init(**options):
        raise RuntimeError("no key")

    fake(monkeypatch, "wandb", init=init)
    with pytest.raises(trackers.TrackerError, match=r"no key.*metrics\.jsonl"):
        trackers.make("wandb", tmp_path, {})


def test_a_service_that_fails_in_training_is_said_once(monkeypatch, tmp_path):
    def log(values):
        raise RuntimeError("no network")

    calls = fake(monkeypatch, "wandb", log=log)
    said = []
    with trackers.listening("wandb", tmp_path, {}, said.append) as (listen,):
        listen(phase="subnets", step=1, loss=1.0)
        listen(phase="subnets", step=2, loss=1.0)
    assert said == ["the tracker failed, training continues without it: no network"]
    assert [name for name, *_ in calls] == ["init"]


def test_tensorboard_has_a_file_of_events(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    with trackers.listening("tensorboard", tmp_path, {}, print) as (listen,):
        listen(phase="finetune", step=1, accuracy=0.5)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"finetune/accuracy" in file.read_bytes()
