"""The command `dcjax`, the experiments' modules, and the list of runs."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from experiments import cli, command, runs
from experiments.settings.naming import default_workdir


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_help_names_every_program(args, capsys):
    assert command.main(args) == 0
    out = capsys.readouterr().out
    for name in ("train", "predict", "report", "runs"):
        assert f"\n  {name} " in out


def test_an_unknown_program_is_one_line(capsys):
    assert command.main(["trian"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "dcjax: error: unknown command 'trian'; choose from train, predict, report, runs\n"
    )


@pytest.mark.parametrize("name", command.PROGRAMS)
def test_every_program_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([name, "--help"])
    assert stop.value.code == 0
    assert f"dcjax {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("predict", "missing PATH; see dcjax predict --help"),
        ("predict a b --top x", "--top: invalid literal for int() with base 10: 'x'; see"),
        ("predict a b --nope", "unrecognized options: --nope; see dcjax predict --help"),
        ("predict a", "no images given"),
        ("report --nope", "unrecognized options: --nope; see dcjax report --help"),
        ("report", "no runs given"),
        ("runs --nope", "unrecognized options: --nope; see dcjax runs --help"),
        ("runs . b", "unrecognized options: b; see"),
        ("train --subnets x", "--subnets: invalid literal"),
    ],
)
def test_flags_that_cannot_be_read_are_one_line(args, said, capsys):
    assert command.main(args.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"dcjax {args.split()[0]}: error: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
@pytest.mark.parametrize("name", command.PROGRAMS)
def test_help_fits_the_terminal(name, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        command.main([name, "--help"])
    usage, *lines = capsys.readouterr().out.splitlines()
    assert len(usage) <= max(80, columns)
    assert all(len(line) <= columns for line in lines)
    assert columns < 80 or len(lines) < 40
    assert not {"(default: )", "[["} & {
        *re.findall(r"\(default: \)|\[\[", "".join([usage, *lines]))
    }


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_can_complete_the_flags(shell, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["completion", shell])
    assert stop.value.code in (0, None)
    out = capsys.readouterr().out
    assert "--subnet-epochs" in out
    assert "predict" in out
    assert command.main(["completion", "fish"]) == 2


def test_train_is_the_experiment(capsys):
    assert command.main(["train", "--subnets", "0"]) == 2
    assert capsys.readouterr().err.startswith("dcjax train: error: --subnets 0")


def test_without_the_programs_the_command_says_how_to_get_them(tmp_path):
    code = "import sys; sys.modules['experiments'] = None; from dcjax.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith("dcjax: error: the programs are not installed")
    assert "git clone" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("cifar10", "auto"),
        ("cifar100", "cifar100"),
        ("fashion_mnist", "tfds:fashion_mnist"),
        ("food101", "tfds:food101"),
        ("digits", "digits"),
    ],
)
def test_each_experiment_has_its_data(name, dataset, monkeypatch):
    """Flags still win over it."""
    asked = []
    monkeypatch.setattr(cli, "run", lambda settings, *_: asked.append(settings) or 0)
    monkeypatch.delitem(sys.modules, f"experiments.{name}", raising=False)  # runpy would warn
    for flags in ([], ["--dataset", "folder:here", "--seed", "3"]):
        monkeypatch.setattr(sys, "argv", ["it", *flags])
        with pytest.raises(SystemExit):
            run_module(name)
    first, second = asked
    assert (first.data.dataset, first.seed) == (dataset, 0)
    assert (second.data.dataset, second.seed) == ("folder:here", 3)
    if name == "food101":
        assert first.data.image_size == 64
    assert first.training.batch_size == (32 if name == "digits" else 128)


def run_module(name):
    import runpy

    runpy.run_module(f"experiments.{name}", run_name="__main__")


@pytest.fixture
def folder(tmp_path, results):
    """A finished run, one that runs, one that stopped and one that has just begun."""
    for name in ("a", "b", "c/below", "d"):
        (tmp_path / name).mkdir(parents=True)
        settings = {"dataset": "auto", "subnets": 2, "seed": 0}
        settings |= {"subnet_epochs": 1, "finetune_epochs": 1}
        (tmp_path / name / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "a" / "results.json").write_text(json.dumps(results))
    line = {"time": "2026-01-02", "phase": "finetune", "epoch": 3, "step": 12}
    for name, process in (("b", os.getpid()), ("c/below", 2**22 + 1)):
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + '\n{"time": ')
        owner = f"process {process} on {socket.gethostname()}, since Friday"
        (tmp_path / name / ".lock.owner").write_text(owner)
    return tmp_path


def test_runs_are_listed_with_their_state_and_accuracies(folder, capsys):
    assert runs.main("it", [str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [
        ["a", "cifar10", "2", "finished", "41.50", "%", "50.00", "%", "70.00", "%", "60.00", "%"],
        ["b", "auto", "2", "running,", "fine-tuning", "epoch", "3"],
        ["c/below", "auto", "2", "stopped,", "fine-tuning", "epoch", "3"],
        ["d", "auto", "2", "stopped"],
    ]


@pytest.mark.parametrize(
    "line", [b"x}", b"\xff\xfe}", b"{}", b"3", b'{"time": 3, "phase": []}', b"[" * 99999 + b"}"]
)
def test_damaged_metrics_hide_no_runs(line, folder, capsys):
    for name in ("b", "d"):
        (folder / name / "metrics.jsonl").write_bytes(line + b"\n")
    assert runs.main("it", [str(folder)]) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == ["a", "b", "c/below", "d"]


@pytest.mark.parametrize(
    "change", [{"accuracy": []}, {}, {"accuracy": "x"}, {"accuracy": None}, {"accuracy": [{}]}]
)
def test_damaged_results_hide_no_runs(change, folder, results, capsys):
    (folder / "a" / "results.json").write_text(json.dumps(results | {"subnets_phase": change}))
    (folder / "b" / "results.json").write_text(json.dumps({"subnets_phase": []}))
    (folder / ".vscode").mkdir()
    (folder / ".vscode" / "settings.json").write_text('{"editor.tabSize": 2}')
    assert runs.main("it", [str(folder)]) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == ["a", "b", "c/below", "d"]


def test_a_folder_without_runs_is_one_line(tmp_path, capsys):
    assert runs.main("it", [str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"it: error: no runs in {tmp_path}; name another folder\n"


def test_a_workdirs_name_tells_the_run():
    settings = cli.parse("it", ["--width", "64", "--seed", "2"], dataset="tfds:food101")
    name = default_workdir(settings).name
    assert name.startswith("food101-resnet8-w64-k4-seed2-")
    longer = cli.parse("it", ["--width", "64", "--seed", "2", "--subnet-epochs", "9"])
    assert default_workdir(longer).name.startswith("cifar10-resnet8-w64-k4-seed2-")
