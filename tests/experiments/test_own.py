"""Networks and optimisers of one's own on the command line."""

import json
import os
import sys

import optax
import pytest

from experiments import cli
from experiments.settings import own, validate

MODULE = """
import flax.linen as nn, jax.numpy as jnp, optax
import dcjax

class Net(nn.Module):
    num_classes: int
    width: int = 8
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(self.width, (3, 3), (4, 4), dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))

class Fixed(nn.Module):
    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(12)(x.mean((1, 2))))
        return nn.Dense(self.classes)(x)

class Mixing(Net):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.LayerNorm()(nn.Dense(self.width)(x.mean((1, 2))))
        return nn.Dense(self.num_classes)(x)

class Silent(nn.Module):
    num_classes: int

    def __call__(self, x):
        return x

def fixed(num_classes):
    return dcjax.narrowable(Fixed(num_classes), keep=("Dense_1",))

def optimizer(rate):
    return optax.chain(optax.clip(1.0), optax.adam(rate))

def nothing(num_classes):
    return None

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """A module in the current directory, which is not on Python's path."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    yield
    sys.modules.pop("mine", None)


def test_a_class_gets_what_it_takes():
    made = own.network("mine:Net", 5, width=16, depth=8)
    assert (made.num_classes, made.width) == (5, 16)


TINY = [
    *("--dataset", "digits", "--train-size", "64", "--batch-size", "16", "--subnets", "2"),
    *("--width", "8", "--subnet-epochs", "1", "--finetune-epochs", "1", "--baseline-epochs", "1"),
]


def test_a_run_with_them_is_recorded_and_resumed(capsys):
    own_ones = ["--model", "mine:Net", "--optimizer", "adamw", "--learning-rate", "0.001"]
    assert cli.main("it", [*TINY, *own_ones, "--workdir", "run"]) == cli.OK
    with open("run/settings.json") as file:
        settings = json.load(file)
    assert (settings["model"], settings["optimizer"]) == ("mine:Net", "adamw")
    with open("run/results.json") as file:
        results = json.load(file)
    assert results["model"]["name"] == "mine:Net"
    assert results["composed"]["feature_error"] < 1e-4
    capsys.readouterr()
    assert cli.main("it", [*TINY, "--model", "cnn", "--depth", "5", "--workdir", "run"]) == 2
    assert "--model: mine:Net there, cnn here" in capsys.readouterr().err


def test_a_function_may_make_widths_in_the_code_narrow(capsys):
    assert cli.main("it", [*TINY, "--model", "mine:fixed", "--workdir", "run"]) == cli.OK


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "mine:Mixing"], "LayerNorm"),
        (["--model", "mine:Net", "--width", "9"], "9"),
        (["--model", "mine:Missing"], "cannot be imported: AttributeError: module 'mine' has no"),
        (["--model", "missing:Net"], "cannot be imported: ModuleNotFoundError: No module named"),
        (["--model", "mine:number"], "is a int, expected a class or function"),
        (["--model", "mine:Fixed"], "takes classes, parent, name; expected num_classes"),
        (["--model", "mine:Silent"], "give it `train: bool = False`"),
        (["--model", "mine:nothing"], "is a NoneType, expected a Flax Linen module"),
        (["--model", "vgg"], "expected resnet, cnn or MODULE:CLASS"),
        (["--optimizer", "adamw"], "give its own, --learning-rate 0.001"),
        (["--optimizer", "adamv", "--learning-rate", "0.1"], "has no attribute 'adamv'"),
        (["--optimizer", "global_norm", "--learning-rate", "0.1"], "cannot be made"),
    ],
)
def test_what_cannot_be_used_is_one_message_before_anything_is_trained(flags, said, capsys):
    assert cli.main("it", [*TINY, *flags, "--workdir", "run"]) == cli.BAD_INPUT
    error = capsys.readouterr().err.partition("it: error: ")[2]
    assert flags[0] in error
    assert said in error
    assert not os.path.exists("run")  # the next command is not refused for this one's settings
    assert "Traceback" not in error


def test_an_optimizer_of_ones_own_is_a_function_of_the_rate():
    made = own.optimizer("mine:optimizer", optax.constant_schedule(0.1), 0.0)
    assert isinstance(made, optax.GradientTransformation)
    decayed = own.optimizer("adamw", 0.1, 0.5)
    params = {"w": 1.0}
    updates, _ = decayed.update({"w": 0.0}, decayed.init(params), params)
    assert updates["w"] == pytest.approx(-0.05)


def test_the_usual_networks_need_no_module():
    assert validate.problems(cli.parse("it", ["--model", "cnn", "--depth", "8"])) == []
