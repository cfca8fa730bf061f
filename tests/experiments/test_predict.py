"""The networks in DIR/model predict as the run was measured, and the command says so."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import dcjax
from experiments import cli, data, predict

ARGS = [
    *(
        "--dataset",
        "digits",
        "--train-size",
        "256",
        "--batch-size",
        "16",
        "--learning-rate",
        "0.05",
    ),
    *("--model", "cnn", "--subnets", "2", "--width", "8", "--depth", "5", "--samples", "phases"),
    *("--subnet-epochs", "2", "--finetune-epochs", "1", "--baseline-epochs", "1"),
]
TEST = data.load("digits").test


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert cli.main("python -m experiments.cifar10", [*ARGS, "--workdir", str(folder)]) == cli.OK
    return folder


@pytest.fixture(scope="module")
def results(run):
    return json.loads((run / "results.json").read_text())


def accuracy(probabilities):
    return float(np.mean(probabilities.argmax(-1) == TEST.labels))


def test_all_networks_predict_as_they_were_measured(run, results):
    model = dcjax.load_run(run)
    stages = {"composed": "composed", "finetuned": "finetune", "baseline": "baseline"}
    for which, stage in stages.items():
        assert accuracy(model.predict(TEST.images, which)) == results[stage]["accuracy"]
    each = model.predict(TEST.images, "subnets")
    assert [accuracy(p) for p in each] == results["subnets_phase"]["accuracy"]
    assert model.classes == tuple("0123456789")


def test_the_files_are_of_the_networks(run, results):
    model = dcjax.load_run(run / "model")
    stacked = model.variables("subnets")
    composed = dcjax.compose(stacked)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        composed,
        model.variables("composed"),
    )
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["weights"]["finetuned"]["accuracy"] == results["finetune"]["accuracy"]
    assert config["parameters"] == results["model"]["parameters"]
    assert dataclasses.asdict(model.network)["width"] == 8
    assert str(run) not in json.dumps(config) + (run / "model" / "README.md").read_text()


def test_the_card_has_the_front_matter_and_the_figures(run, results):
    yaml = pytest.importorskip("yaml")
    _, front, body = (run / "model" / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["library_name"] == "dcjax"
    [measured] = front["model-index"][0]["results"][0]["metrics"]
    assert measured["value"] == results["finetune"]["accuracy"]
    assert f"{100 * results['baseline']['accuracy']:.2f} %" in body
    assert "| learning_rate | 0.05 |" in body


def test_a_model_alone_is_enough(run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "elsewhere")
    model = dcjax.load_run(tmp_path / "elsewhere")
    assert model.predict(TEST.images[:3]).shape == (3, 10)


def test_fresh_deletes_the_model_and_nothing_else(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "model" / "mine.txt").write_text("kept")
    cli.workdir.clear(folder)
    assert [each.name for each in (folder / "model").iterdir()] == ["mine.txt"]


def test_a_lost_model_comes_back_from_the_checkpoints(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    again = [*ARGS, "--workdir", str(folder)]
    (folder / "model" / "baseline.safetensors").unlink()
    assert cli.main("it", again) == cli.OK
    err = capsys.readouterr().err
    assert "its results, on digits (not read again), from" in err
    lost = f"{folder / 'model'} lacks baseline.safetensors: delete {folder / 'results.json'}"
    assert lost in " ".join(err.split())
    shutil.rmtree(folder / "model")
    assert predict.main(args=[str(folder), "any.png"]) == 2
    assert "lacks config.json, subnets.safetensors, composed" in capsys.readouterr().err
    (folder / "results.json").unlink()
    assert cli.main("it", again) == cli.OK
    assert "epoch 1/" not in capsys.readouterr().err
    assert accuracy(dcjax.load_run(folder).predict(TEST.images)) > 0
    (folder / "model" / "config.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    assert cli.workdir.without_model(folder).endswith("with --fresh trains it again")
    (folder / "results.json").unlink()
    assert cli.workdir.without_model(folder) == ""


@pytest.mark.parametrize("top", ["0", "-1"])
def test_at_least_one_class_is_printed(top, capsys):
    assert predict.main(args=["run", "any.png", "--top", top]) == 2
    assert f"--top {top}: expected an integer of 1 or more" in capsys.readouterr().err


def said(capsys, *args, code=0):
    assert predict.main(args=[*map(str, args)]) == code
    return capsys.readouterr()


def test_the_command_names_classes_of_images_of_any_kind(run, tmp_path, capsys):
    image = Image.fromarray(TEST.images[0])
    paths = [tmp_path / name for name in ("as_is.png", "wide.jpg", "clear.png", "grey.gif")]
    image.save(paths[0])
    image.resize((90, 64)).save(paths[1])
    image.convert("RGBA").save(paths[2])
    image.convert("L").save(paths[3])
    out = said(capsys, run, *paths, "--top", "2").out.splitlines()
    assert len(out) == 8
    model = dcjax.load_run(run)
    best = model.predict(TEST.images[:1])[0]
    assert out[0].startswith(f"{paths[0]}: {best.argmax()} {100 * best.max():.1f} %, ")
    assert out[0].count("%") == 2
    each = model.predict(TEST.images[:1], "subnets")[:, 0]
    assert out[1] == "    sub-networks: " + " | ".join(
        f"{p.argmax()} {100 * p.max():.1f} %" for p in each
    )


def test_what_cannot_be_read_is_one_line_and_the_rest_is_done(run, tmp_path, capsys):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(TEST.images[0]).save(good)
    bad.write_bytes(b"not an image")
    found = said(capsys, run, good, bad, tmp_path / "absent.png", tmp_path, code=2)
    assert found.out.startswith(f"{good}: ")
    lines = found.err.splitlines()
    assert [line.split(": error: ")[1] for line in lines] == [
        f"{bad}: Pillow does not know its format",
        f"{tmp_path / 'absent.png'}: No such file or directory",
        f"{tmp_path}: Is a directory",
    ]


def test_no_images_is_an_error(run, capsys):
    assert "no images given" in said(capsys, run, code=2).err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no model in"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be used"),
        (lambda folder: (folder / "config.json").write_text('{"format": 2}'), "its format is 2"),
        (lambda folder: (folder / "finetuned.safetensors").write_bytes(b"x"), "is damaged"),
        (lambda folder: (folder / "finetuned.safetensors").unlink(), "No such file"),
    ],
)
def test_a_damaged_model_is_one_line(run, tmp_path, capsys, change, message):
    folder, image = tmp_path / "model", tmp_path / "a.png"
    shutil.copytree(run / "model", folder)
    Image.fromarray(TEST.images[0]).save(image)
    change(folder)
    err = said(capsys, folder, image, code=2).err
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_network_of_ones_own_is_asked_for(run, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(run / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    settings = config["network"]["settings"]
    config["network"] = {"class": "os.system", "settings": settings}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"its network is os.system, which is not imported"):
        dcjax.load_run(folder)
    network = dcjax.load_run(run).network
    assert dcjax.load_run(folder, network=network).predict(TEST.images[:2]).shape == (2, 10)
