"""The ways beyond the paper: each composes what it has trained, and the table says what came."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import cli
from experiments.method import factory
from experiments.results.score import Score
from experiments.run import console as progress
from experiments.study import arms, beyond

FLAGS = {"dataset": "digits", "train_size": 40, "batch_size": 20}
FLAGS |= {"model": "cnn", "depth": 5, "width": 8}


@pytest.fixture(scope="module")
def lab():
    settings = arms.settings(arms.STUDIES["digits"], arms.averaged((6, 3), 0.2), 0)
    settings = arms.with_flags(settings, FLAGS)
    dataset = cli.load(settings, progress.voice(Console(quiet=True)))
    network = factory.network(settings.network, 10)
    x = factory.normalise(dataset)(jnp.asarray(dataset.test.images[:2]))
    return beyond.Lab(settings, dataset, network, x, lambda line: None)


@pytest.fixture
def untrained(monkeypatch):
    """Training leaves everything as it is; in the accuracy's place stands one of the logits."""

    def fit(phase, state, data, epochs):
        return SimpleNamespace(state=state)

    monkeypatch.setattr(beyond.training, "fit", fit)
    monkeypatch.setattr(beyond, "score", lambda z, labels: Score(float(z[5, 3]), 0.0))


@pytest.mark.parametrize("name", beyond.WAYS)
def test_every_way_composes_what_it_has_trained(lab, untrained, name):
    run = beyond.WAYS[name](lab)
    first = np.array(run.stages[0])
    assert first.shape == (4,)
    assert first.std() > 0.01
    factor = {"summing-head": 4, "sharper-head": 2}.get(name, 1)
    assert run.composed == pytest.approx(factor * first.mean(), abs=1e-5)
    assert run.final == run.composed
    if name == "levels":
        np.testing.assert_allclose(run.stages[1], first.reshape(2, 2).mean(1), atol=1e-5)
    if name == "rounds":
        np.testing.assert_allclose(run.stages[2], first, atol=1e-5)


def test_what_has_been_run_is_in_the_table_and_not_run_again(
    lab, untrained, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(beyond, "_lab", lambda *_: lab)
    document = tmp_path / "results.md"
    document.write_text("<!-- beyond -->\n<!-- end -->\n")
    records = tmp_path / "runs" / "beyond.json"
    flags = ["beyond", "--records", str(records), "--output", str(document), "--ways"]
    monkeypatch.setattr("sys.argv", [*flags, "default"])
    assert beyond.main() == 0
    (name, kept) = json.loads(records.read_text()).popitem()
    assert name == "default-seed0"
    final = f"{100 * kept['stages'][-1][0]:.1f}"
    row = "| default | Four epochs of the sub-networks, two of the global network | 1 |"
    assert f"{row} {final} | {final} |" in document.read_text()
    before = document.read_text()
    monkeypatch.setattr(beyond, "_lab", None)  # nothing is to be run
    assert beyond.main() == 0
    assert document.read_text() == before


@pytest.mark.parametrize("wrong", [["--ways", "level"], ["--seeds", "0"]])
def test_wrong_input_is_refused(monkeypatch, tmp_path, capsys, wrong):
    document = tmp_path / "results.md"
    document.write_text("<!-- beyond -->\n<!-- end -->\n")
    monkeypatch.setattr("sys.argv", ["beyond", "--output", str(document), *wrong])
    assert beyond.main() == 2
    assert "expected --ways of default levels" in capsys.readouterr().err


def test_missing_data_are_one_message(monkeypatch, tmp_path, capsys):
    document = tmp_path / "results.md"
    document.write_text("<!-- beyond -->\n<!-- end -->\n")
    flags = ["--output", str(document), "--records", str(tmp_path / "beyond.json")]
    flags += ["--data-dir", str(tmp_path / "nowhere")]
    monkeypatch.setattr("sys.argv", ["beyond", *flags])
    assert beyond.main() == 2
    assert "nowhere" in capsys.readouterr().err
    assert document.read_text() == "<!-- beyond -->\n<!-- end -->\n"
