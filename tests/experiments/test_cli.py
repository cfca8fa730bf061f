"""The command line: exit codes and messages, before JAX is imported; and a whole run on digits."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

import dcjax
from experiments import cli, data
from experiments.method import pipeline
from experiments.run import console as progress
from experiments.run import workdir
from experiments.settings import help, naming
from experiments.settings.presets import PRESETS
from tests.saved import fail

PROGRAM = "python -m experiments.cifar10"
TINY = [
    *("--dataset", "digits", "--train-size", "64", "--batch-size", "16"),
    *("--subnets", "2", "--width", "8", "--depth", "8"),
    *("--subnet-epochs", "1", "--finetune-epochs", "1", "--baseline-epochs", "2"),
]


def refused(capsys, *args):
    """The message of a command that is refused."""
    assert cli.main(PROGRAM, args) == cli.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--subnets", "0"], "--subnets 0: expected an integer from 1 to 2147483647"),
        (["--seed", str(2**32)], f"--seed {2**32}: expected an integer from 0 to 2147483647"),
        (["--seed", str(2**70)], f"--seed {2**70}: expected an integer from 0 to 2147483647"),
        (["--subnets", "-1"], "--subnets -1"),
        (["--subnets", "3", "--width", "64"], "64 is not divisible by 3"),
        (["--learning-rate", "nan"], "--learning-rate nan"),
        (["--learning-rate", "-0.1"], "--learning-rate -0.1"),
        (
            ["--dataset", "cifar"],
            "cifar100, digits, tfds:NAME or folder:PATH",
        ),
        (["--dataset", "digits", "--samples", "channels"], "--samples channels: K = 4"),
        (["--dataset", "digits", "--batch-size", "1401"], "at most --batch-size 1400"),
        (["--workdir", "file"], "it is a file"),
        (["--workdir", "", "--data-dir="], "--workdir has an empty value\n  --data-dir has"),
        (["--dataset", "cifar10", "--data-dir", "none"], "none is not a folder"),
    ],
)
def test_bad_input_is_one_message_and_begins_no_run(args, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    message = refused(capsys, *args)
    assert message.startswith(f"{PROGRAM}: error: ")
    assert said in message
    assert not [*tmp_path.rglob("*.json*")]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--subnets", "four"], "'four'"),
        (["--train-size", "none"], "--train-size: expected INT or None, got 'none'; see"),
        (["--subnets"], "--subnets"),
        (["--preset"], "--preset"),
        (["--preset", "papr"], "papr"),
        (["--precision", "half"], "half"),
        (["--widht", "32"], "--width"),
        (["cifar10"], "cifar10"),
    ],
)
def test_flags_that_cannot_be_read_are_one_line(args, said, capsys):
    message = refused(capsys, *args)
    assert message.startswith(f"{PROGRAM}: error: ")
    assert said in message
    assert message.endswith(f"; see {PROGRAM} --help\n")
    assert message.count("\n") == 1


def test_flags_that_cannot_be_read_are_one_line_in_ascii():
    args = [sys.executable, "-m", "experiments.cifar10", "--subnets", "four"]
    ascii = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(args, env=ascii, capture_output=True, text=True, check=False)
    said = "error: --subnets: invalid literal for int() with base 10: 'four'; see"
    assert done.stderr == f"python -m experiments.cifar10: {said} {PROGRAM} --help\n"


def test_flags_override_the_preset():
    settings = cli.parse(PROGRAM, ["--width", "128", "--preset", "paper", "--seed", "5"])
    assert settings.training == PRESETS["paper"].training
    assert (settings.preset, settings.seed) == ("paper", 5)
    assert (settings.network.width, settings.network.depth) == (128, 32)


def test_help_shows_the_presets_own_values(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(PROGRAM, ["--preset=paper", "--help"])
    assert stop.value.code == cli.OK
    assert "(default: 160)" in capsys.readouterr().out


def helped(capsys, monkeypatch, flag):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        cli.main(PROGRAM, [flag])
    assert stop.value.code == cli.OK
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_help_is_one_screen_of_the_common_flags(capsys, monkeypatch):
    out = helped(capsys, monkeypatch, "--help")
    assert out.count("\n") <= 40
    assert "--help-all" in out
    for name in help.COMMON:
        assert f"{naming.as_flag(name)} " in out or f"{naming.as_flag(name)}," in out
    assert "--weight-decay" not in out


def test_the_whole_help_has_every_flag_in_flowing_text(capsys, monkeypatch):
    out = helped(capsys, monkeypatch, "--help-all")
    for name in naming.flat(PRESETS["quick"]):
        assert naming.as_flag(name) in out
    lines = [line.strip("│ ") for line in out.splitlines()]
    assert "they need a c++ compiler once" in " ".join(lines).lower()
    assert not {"compiler once;", "images, no network needed, two minutes) or paper"} & {*lines}
    assert "{None}" not in out


@pytest.mark.parametrize("args", [["--subnets", "0"], ["--subnets", "four"], ["--help"]])
def test_jax_is_not_imported_for_a_mistake(args):
    program = (
        "import sys\n"
        "from experiments import cli\n"
        "try:\n"
        "    code = cli.main('study', sys.argv[1:])\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "print({'jax', 'tensorflow_datasets'} & set(sys.modules), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == (cli.OK if args == ["--help"] else cli.BAD_INPUT)
    assert done.stderr.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("module", "flags", "package", "extra"),
    [
        ("cifar10", [], "tyro", "experiments"),
        ("study", [], "tyro", "experiments"),
        ("study", ["--report"], "matplotlib", "experiments"),
        ("benchmark", [], "tyro", "bench"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(
    module, flags, package, extra
):
    code = (
        "import runpy, sys\n"
        f"sys.modules['{package}'] = None\n"  # its import fails as if it were not installed
        f"runpy.run_module('experiments.{module}', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == cli.BAD_INPUT
    assert done.stderr == (
        f"python -m experiments.{module}: error: {package} is not installed: "
        f"pip install -e '.[{extra}]'\n"
    )


# The check of the environment starts JAX in a process of its own.
START = """
import sys
from experiments import cli
cli.startup.check_environment = lambda: None
sys.exit(cli.main("it"))
"""


def test_no_backend_starts_for_samples_that_do_not_fit():
    """Sub-networks' samples are checked by tracing shapes, which needs JAX but none of its devices.

    With a platform that does not exist, starting a backend would be an error.
    """
    args = ["--dataset", "digits", "--samples", "channels", "--subnets", "4"]
    done = subprocess.run(
        [sys.executable, "-c", START, *args],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"JAX_PLATFORMS": "nowhere"},
    )
    assert done.returncode == cli.BAD_INPUT
    assert "--samples channels: K = 4" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("asked", "got"), [("64", 64), ("100000", 1400), ("None", 1400)])
def test_train_size_is_the_most_that_is_taken(asked, got):
    settings = cli.parse(PROGRAM, [*TINY, "--train-size", asked])
    dataset = cli.load(settings, progress.Voice(Console(quiet=True)))
    assert len(dataset.train.labels) == len(dataset.train.images) == got
    assert len(dataset.test.labels) == 340


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_one_line_and_goes_on(number, capsys, tmp_path, monkeypatch):
    def interrupt(*_):
        signal.raise_signal(number)
        time.sleep(10)

    monkeypatch.setattr(pipeline, "run", interrupt)
    args = [*TINY, "--workdir", str(tmp_path)]
    assert cli.main(PROGRAM, args) == cli.STOPPED + number
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{PROGRAM}: stopped by SIG")
    assert signal.getsignal(number) is not interrupt
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == [".lock", "metrics.jsonl", "settings.json"]
    assert workdir.finished(tmp_path, json.loads((tmp_path / "settings.json").read_text())) is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a whole run."""
    folder = tmp_path_factory.mktemp("run")
    assert cli.main(PROGRAM, [*TINY, "--workdir", str(folder)]) == cli.OK
    return folder


def read(folder):
    return json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)


TIMES = {"epochs", "seconds", "device_seconds"}
SCORE = {"accuracy", "cost"}
KEYS = {
    "dataset": None,
    "subnets": None,
    "seed": None,
    "model": set(),
    "versions": {"python", "jax", "jaxlib", "flax", "optax", "numpy", "dcjax"},
    "devices": set(),
    "compile_seconds": {"subnets", "compose", "finetune", "baseline"},
    "operations_per_epoch": {"subnets", "global"},
    "subnets_phase": TIMES | SCORE | {"curve"},
    "composed": SCORE
    | {"seconds", "feature_error"}
    | {"accuracy_lower", "accuracy_upper", "cost_lower", "cost_upper"},
    "finetune": TIMES | SCORE | {"curve"},
    "baseline": TIMES | SCORE | {"curve"},
    "speedup": {"target_accuracy", "test_images", "seconds", "baseline_seconds", "wall", "device"},
    "settings": set(),
}


def test_results_have_exactly_the_agreed_keys(finished):
    results = read(finished)
    assert list(results) == list(KEYS)
    for name, keys in KEYS.items():
        if keys:
            assert set(results[name]) == keys, name
    for phase in ("subnets_phase", "finetune", "baseline"):
        for entry in results[phase]["curve"]:
            assert set(entry) == {"epoch", "seconds", "device_seconds", "accuracy", "cost"}


def test_a_run_leaves_its_report(finished):
    text = (finished / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# digits: 2 sub-networks of width")
    assert "## What the kernels have learned" in text
    assert "sub-network 1" in text
    assert (finished / "report.html").is_file()


def test_results_agree_with_the_theory(finished):
    composed = read(finished)["composed"]
    assert composed["accuracy_lower"] <= composed["accuracy"] <= composed["accuracy_upper"]
    assert composed["cost_lower"] <= composed["cost"] <= composed["cost_upper"]
    assert composed["feature_error"] < 1e-4


def test_results_agree_with_each_other(finished):
    results = read(finished)
    assert (results["dataset"], results["subnets"], results["seed"]) == ("digits", 2, 0)
    assert len(results["subnets_phase"]["accuracy"]) == len(results["subnets_phase"]["cost"]) == 2
    for phase, epochs in (("subnets_phase", 1), ("finetune", 1), ("baseline", 2)):
        measured = results[phase]
        assert [entry["epoch"] for entry in measured["curve"]] == list(range(epochs + 1))
        last = measured["curve"][-1]
        assert {name: measured[name] for name in SCORE} == {name: last[name] for name in SCORE}
        assert measured["seconds"] == measured["device_seconds"] == last["seconds"] > 0
    start = results["finetune"]["curve"][0]
    assert {name: results["composed"][name] for name in SCORE} == {n: start[n] for n in SCORE}
    assert results["speedup"]["target_accuracy"] == results["baseline"]["accuracy"]


def test_metrics_were_written_as_it_went(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["phase"], line.get("epoch")) for line in lines]
    assert seen == [
        ("subnets", 0),
        ("subnets", 1),
        ("composed", None),
        ("finetune", 0),
        ("finetune", 1),
        ("baseline", 0),
        ("baseline", 1),
        ("baseline", 2),
    ]
    assert len(lines[1]["loss"]) == len(lines[1]["accuracy"]) == 2
    assert lines[-1]["step"] == 8
    curve = read(finished)["baseline"]["curve"]
    assert lines[-1]["accuracy"] == curve[-1]["accuracy"]


def test_a_dry_run_prints_the_plan_and_leaves_nothing(capsys, tmp_path):
    folder = tmp_path / "run"
    assert cli.main(PROGRAM, [*TINY, "--workdir", str(folder), "--dry-run"]) == cli.OK
    out = capsys.readouterr().out
    assert "data: digits, 10 classes; 64 training" in out
    key, image = jax.random.key(0), jnp.ones((1, 32, 32, 3))
    leaves = jax.tree.leaves(dcjax.models.ResNet(8, 4, 10).init(key, image)["params"])
    count = sum(leaf.size for leaf in leaves)
    assert f"2 sub-networks of width 4, {count:,} parameters each" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("baseline")]
    assert row[1:3] == ["2", "8"]  # epochs, steps
    assert "in all about" in out
    assert "memory after these steps" in out
    assert "params/head/kernel" in out  # the layout
    assert not folder.exists()


def test_a_missing_tracker_is_one_message(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    args = [*TINY, "--workdir", str(tmp_path / "run"), "--tracker", "wandb"]
    assert cli.main(PROGRAM, args) == cli.BAD_INPUT
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"{PROGRAM}: error: --tracker wandb needs wandb: pip install wandb"
    )


def test_a_finished_run_is_printed_again_without_training(finished, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "run", None)
    monkeypatch.setattr(data, "load", None)
    before = read(finished)
    assert cli.main(PROGRAM, [*TINY, "--workdir", str(finished)]) == cli.OK
    out = capsys.readouterr().out
    assert "NOT CIFAR-10" not in out  # digits are what was asked for
    assert f"{100 * before['baseline']['accuracy']:.2f} %" in out
    assert read(finished) == before


def test_results_that_cannot_be_printed_are_in_the_workdir(finished):
    command = [sys.executable, "-m", "experiments.cifar10", *TINY, "--workdir", str(finished)]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == cli.LOST
    assert "cannot be printed: No space left" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert str(finished) in ended.stderr


@pytest.mark.parametrize("kind", ["MemoryError", "XLA's"])
def test_too_little_memory_is_one_message(capsys, monkeypatch, tmp_path, kind):
    def fail(*_):
        if kind == "MemoryError":
            raise MemoryError
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(pipeline, "run", fail)
    message = refused(capsys, *TINY, "--workdir", str(tmp_path / "run"))
    assert "the memory does not suffice: take a smaller --width or --batch-size" in message


def test_another_error_of_xla_s_is_no_lack_of_memory(monkeypatch, tmp_path):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(pipeline, "run", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        cli.main(PROGRAM, [*TINY, "--workdir", str(tmp_path / "run")])


def test_a_closed_stdout_is_said(finished, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(PROGRAM, [*TINY, "--workdir", str(finished)]) == cli.LOST
    assert "stdout is closed" in capsys.readouterr().err


def test_a_terminal_without_columns_shows_everything(finished, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    assert cli.main(PROGRAM, [*TINY, "--workdir", str(finished)]) == cli.OK
    out, err = capsys.readouterr()
    assert "fine-tuned" in out
    assert "this run is finished" in err


def test_a_help_that_nobody_reads_is_no_error(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            cli.main(PROGRAM, ["--help"])
        assert ended.value.code == cli.OK


@pytest.mark.parametrize("content", [{}, {"dataset": 3}])
def test_results_of_something_else_are_refused(finished, capsys, tmp_path, content):
    shutil.copy(finished / "settings.json", tmp_path)
    settings = json.loads((finished / "settings.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(content))
    message = refused(capsys, *TINY, "--workdir", str(tmp_path))
    assert "results.json does not name its settings. Delete it" in message
    (tmp_path / "results.json").write_text(json.dumps(content | {"settings": settings}))
    message = refused(capsys, *TINY, "--workdir", str(tmp_path))
    assert "results.json is not of this command" in message
    assert "Delete that file" in message


@pytest.mark.parametrize(
    "flag", ["--workdir={}", "--dataset=folder:{}", "--dataset=cifar10 --data-dir={}"]
)
def test_a_name_that_is_too_long_is_one_message(capsys, flag):
    message = refused(capsys, *TINY, *flag.format("x" * 300).split())
    assert "File name too long" in message


def test_other_settings_are_refused(finished, capsys):
    message = refused(capsys, *TINY, "--workdir", str(finished), "--seed", "1")
    assert "--seed: 0 there, 1 here" in message


def test_results_that_cannot_be_written_are_printed(results, capsys, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def vanish(*_):
        shutil.rmtree(folder)
        return results | {"baseline": results["baseline"] | {"cost": math.nan}}

    monkeypatch.setattr(pipeline, "run", vanish)
    assert cli.main(PROGRAM, [*TINY, "--workdir", str(folder)]) == cli.LOST
    out, err = capsys.readouterr()
    assert "the results cannot be written" in err
    assert "diverged" in out


def test_a_subnetwork_that_is_not_kept_is_no_success(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("orbax.checkpoint.v1.save", fail)
    folder = tmp_path / "run"
    args = [*TINY, "--workdir", str(folder), "--only-subnet", "1"]
    assert cli.main(PROGRAM, args) == cli.LOST
    assert "sub-network 1 is trained, but could not be saved" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(PROGRAM, args) == cli.OK
    assert "sub-network 1 is trained; the command without" in capsys.readouterr().err


def test_memory_is_kept_before_the_data_is_read(monkeypatch, tmp_path):
    """What reads the data starts threads, and they would have memory of their own."""
    called = []

    def load(*_):
        called.append("load")
        raise data.DataError("none")

    monkeypatch.setattr(cli.startup, "keep_memory", lambda: called.append("keep"))
    monkeypatch.setattr(cli, "load", load)
    assert cli.main(PROGRAM, ["--workdir", str(tmp_path)]) == cli.BAD_INPUT
    assert called == ["keep", "load"]


def test_zero_epochs_are_no_training(tmp_path):
    args = [*TINY, "--workdir", str(tmp_path), "--model", "cnn", "--samples", "tiles"]
    for phase in ("subnet", "finetune", "baseline"):
        args += [f"--{phase}-epochs", "0"]
    assert cli.main(PROGRAM, args) == cli.OK
    results = read(tmp_path)
    assert results["finetune"]["curve"][0]["accuracy"] == results["composed"]["accuracy"]
    assert results["subnets_phase"]["seconds"] == results["baseline"]["seconds"] == 0
    assert results["speedup"]["wall"] is None


@pytest.mark.parametrize(
    ("augment", "said"),
    [("mirror", "by up to 4 pixels and mirrored"), ("shift", "not mirrored"), ("none", "neither")],
)
def test_what_is_done_with_an_image_is_said(augment, said):
    from experiments.method import factory

    digits = data.load("digits", augment=augment)
    line = factory.treatment(digits)
    assert line.startswith("1400 training and 340 test images of 32×32; each colour is normalised")
    assert said in line
