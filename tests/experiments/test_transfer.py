"""What goes over from the sub-networks' training into fine-tuning, as the flags ask for it."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcjax.checkpoints import Checkpoints
from experiments import cli
from experiments.method import factory

PROGRAM = "python -m experiments.cifar10"
SUBNETS = 2
TINY = [
    *("--dataset", "digits", "--train-size", "64", "--batch-size", "16"),
    *("--model", "cnn", "--subnets", str(SUBNETS), "--width", "8", "--depth", "5"),
    *("--subnet-epochs", "1", "--baseline-epochs", "0"),
]


@pytest.fixture
def run(tmp_path):
    def run(*flags):
        assert cli.main(PROGRAM, [*TINY, "--workdir", str(tmp_path), *flags]) == cli.OK
        return tmp_path

    return run


def saved(folder, name, part=""):
    """What a phase's last checkpoint has below a part of the state, nested."""
    with Checkpoints(folder / "checkpoints" / name) as checkpoints:
        leaves = checkpoints.load().leaves
    tree = {}
    for path, leaf in leaves.items():
        head, _, keys = path.partition("['")
        if re.fullmatch(part, head):
            *outer, last = keys.removesuffix("']").split("']['")
            node = tree
            for key in outer:
                node = node.setdefault(key, {})
            node[last] = jnp.asarray(leaf)
    return tree


VARIABLES, AVERAGED, MOMENTA = r"\.variables.*", r"\.averaged.*", r"\.opt_state.*\.trace"


def test_momenta_go_over_scaled_as_the_gradients_are(run):
    folder = run("--finetune-epochs", "0", "--carry-momentum", "--head-rate", "0.5")
    narrow, wide = (saved(folder, name, MOMENTA) for name in ("subnets", "finetune"))
    kernel, head = narrow["stage1_block1"]["conv"]["kernel"], narrow["head"]["kernel"]
    got = wide["stage1_block1"]["conv"]["kernel"]
    assert np.abs(kernel).max() > 0
    size = kernel.shape[-1]
    np.testing.assert_allclose(got[..., :size], kernel[0] / SUBNETS, rtol=1e-6)
    np.testing.assert_allclose(got[..., size:], kernel[1] / SUBNETS, rtol=1e-6)
    np.testing.assert_allclose(wide["head"]["kernel"], np.concatenate(head), rtol=1e-6)


def test_averages_are_composed_where_they_are_kept(run):
    folder = run("--finetune-epochs", "0", "--average", "0.5")
    last, averaged = (saved(folder, "subnets", part)["params"] for part in (VARIABLES, AVERAGED))
    composed = saved(folder, "composed")["params"]["head"]["kernel"]
    heads = [np.concatenate(tree["head"]["kernel"]) / SUBNETS for tree in (last, averaged)]
    np.testing.assert_allclose(composed, heads[1], rtol=1e-5)
    assert np.abs(heads[0] - heads[1]).max() > 1e-4


def test_smoothed_labels_are_spread_over_all_classes():
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    labels = jnp.array([0, 3, 2, 1, 1])
    spread = optax.losses.smooth_labels(jax.nn.one_hot(labels, 4), 0.2)
    expected = optax.losses.softmax_cross_entropy(logits, spread)
    np.testing.assert_allclose(factory.smoothed(0.2)(logits, labels), expected, rtol=1e-5)


def test_one_schedule_goes_on_at_the_rate_where_it_was(run):
    """Constant, carried over, without blocks of another rate: the loss goes on falling."""
    flags = ("--subnet-final-rate", "0.05", "--learning-rate", "0.05", "--finetune-rate", "0.05")
    folder = run("--finetune-epochs", "2", "--carry-momentum", *flags, "--label-smoothing", "0.1")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    costs = [line["cost"] for line in lines if line["phase"] == "finetune"]
    assert costs[-1] < costs[0]
