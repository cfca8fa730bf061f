"""A sub-network whose loss becomes nan: the others are as they would be without it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax import method
from dcjax.checkpoints import Checkpoints
from dcjax.training._learner import _AUGMENT, _stream
from experiments import cli
from experiments.method import factory, subnetworks

PROGRAM = "python -m experiments.cifar10"
SUBNETS, BAD, STEP = 3, 1, 6
TINY = [
    *("--dataset", "digits", "--train-size", "64", "--batch-size", "16"),
    *("--model", "cnn", "--subnets", str(SUBNETS), "--width", "12", "--depth", "5"),
    *("--subnet-epochs", "3", "--finetune-epochs", "0", "--baseline-epochs", "0"),
    *("--learning-rate", "0.1"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of a run in which nothing diverges."""
    folder = tmp_path_factory.mktemp("run")
    assert cli.main(PROGRAM, [*TINY, "--workdir", str(folder)]) == cli.OK
    return folder


@pytest.fixture
def poisoned(monkeypatch):
    """Sub-network BAD gets images of nan in its step number STEP, as long as its key is its own."""
    made, keys = factory.recipe, []
    train = method.run_stage

    def remember(plan, *args):
        if plan.name == subnetworks.TOGETHER:
            own = jax.random.fold_in(plan.key, BAD)
            keys.append(jax.random.key_data(_stream(own, _AUGMENT, jnp.int32(STEP - 1))))
        return train(plan, *args)

    def recipe(chosen, dataset, *args):
        def augment(key, images):
            hit = (jax.random.key_data(key) == keys[0]).all()
            return jnp.where(hit, jnp.nan, images.astype(jnp.float32))

        # As `standardise` computes it, which refuses floats.
        mean, std = (np.array(each.tolist()) for each in (dataset.mean, dataset.std))
        scale, offset = (1 / (255 * std)).astype(np.float32), (mean / std).astype(np.float32)

        def normalise(images):
            return images.astype(jnp.float32) * scale - offset

        return made(chosen, dataset, *args)._replace(augment=augment, normalise=normalise)

    monkeypatch.setattr(method, "run_stage", remember)
    monkeypatch.setattr(factory, "recipe", recipe)


def state(folder, name):
    """A training's last state, and its step."""
    with Checkpoints(folder / "checkpoints" / name) as checkpoints:
        found = checkpoints.load()
    return found.step, found.leaves


def assert_others_are_untouched(folder, alone):
    step, leaves = state(folder, "subnets")
    expected = state(alone, "subnets")[1]
    assert step == 12
    others = np.array([k for k in range(SUBNETS) if k != BAD])
    for name, leaf in leaves.items():
        data = [
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in (leaf, expected[name])
        ]
        chex.assert_trees_all_equal(data[0][others], data[1][others])
    bad = leaves[next(name for name in leaves if name.endswith("['kernel']"))][BAD]
    assert jnp.isnan(bad).all()


def results(folder):
    return cli.workdir.finished(folder, cli.naming.flat(cli.parse(PROGRAM, TINY)))


def test_stop_says_which_and_where_and_how_to_go_on(poisoned, alone, tmp_path, capsys):
    args = [*TINY, "--workdir", str(tmp_path)]
    assert cli.main(PROGRAM, args) == cli.DIVERGED
    said = capsys.readouterr().err
    assert f"diverged: sub-network {BAD} at step {STEP}: the loss became NaN" in said
    assert "--on-diverged restart" in said
    assert not (tmp_path / "results.json").exists()
    assert state(tmp_path, "subnets")[0] == 4  # the end of the epoch before
    # The same folder goes on when told how.
    assert cli.main(PROGRAM, [*args, "--on-diverged", "drop"]) == cli.OK
    assert_others_are_untouched(tmp_path, alone)


@pytest.mark.parametrize("every", [[], ["--checkpoint-every", "1", "--keep", "1"]], ids=str)
def test_restart_takes_the_last_good_state(every, poisoned, alone, tmp_path, capsys):
    args = [*TINY, "--workdir", str(tmp_path), "--on-diverged", "restart", *every]
    assert cli.main(PROGRAM, args) == cli.OK
    out, err = capsys.readouterr()
    assert f"sub-network {BAD} diverged at step {STEP}" in err
    assert f"sub-network {BAD} again, at half the learning rate: 0.05" in err
    good = 5 if every else 4
    assert f"sub-networks {BAD}: continues from step {good}" in err
    assert f"diverged at step {STEP}: restarted" in out
    assert_others_are_untouched(tmp_path, alone)
    step, leaves = state(tmp_path, f"subnet-{BAD}-restart1")
    assert step == 12
    assert all(jnp.isfinite(x).all() for x in leaves.values() if x.dtype == jnp.float32)
    there = results(tmp_path)
    assert there["subnets_phase"]["diverged"] == [{"subnet": BAD, "step": STEP, "then": "restart"}]
    assert there["composed"]["feature_error"] < 1e-4
    others = [k for k in range(SUBNETS) if k != BAD]
    expected = results(alone)["subnets_phase"]
    for name in ("accuracy", "cost"):
        assert [there["subnets_phase"][name][k] for k in others] == [
            expected[name][k] for k in others
        ]


def test_without_a_good_state_it_starts_from_the_beginning(alone, poisoned, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.experiments.test_diverged.STEP", 2)
    args = [*TINY, "--workdir", str(tmp_path), "--on-diverged", "restart"]
    assert cli.main(PROGRAM, args) == cli.OK
    assert state(tmp_path, f"subnet-{BAD}-restart1")[0] == 12


def test_drop_composes_the_others(poisoned, alone, tmp_path, capsys):
    args = [*TINY, "--workdir", str(tmp_path), "--on-diverged", "drop"]
    assert cli.main(PROGRAM, args) == cli.OK
    assert f"Sub-network {BAD} diverged at step {STEP}: dropped" in capsys.readouterr().out
    assert_others_are_untouched(tmp_path, alone)
    there = results(tmp_path)
    composed, phase = there["composed"], there["subnets_phase"]
    assert composed["feature_error"] < 1e-4
    assert composed["cost_lower"] <= composed["cost"] <= composed["cost_upper"]
    others = [k for k in range(SUBNETS) if k != BAD]
    assert composed["cost"] <= np.mean([phase["cost"][k] for k in others])
    assert np.isfinite(phase["cost"][BAD])  # as initialised, and without a say


@pytest.mark.parametrize("stage_name", ["finetune", "baseline"])
def test_a_global_network_that_diverges_is_said_once(stage_name, tmp_path, capsys, monkeypatch):
    """The warning of `fit` is not printed too: tests treat warnings as errors."""
    made = factory.recipe

    def recipe(chosen, dataset, schedule, *then):
        found = made(chosen, dataset, schedule, *then)
        if schedule.warmup != {"finetune": 0.25, "baseline": 1.25}[stage_name]:
            return found
        return found._replace(loss=lambda logits, labels: found.loss(logits, labels) * jnp.nan)

    monkeypatch.setattr(factory, "recipe", recipe)
    warmup = ["--finetune-warmup-epochs", "0.25", "--baseline-warmup-epochs", "1.25"]
    args = [*TINY, "--finetune-epochs", "2", "--baseline-epochs", "2", *warmup]
    assert cli.main(PROGRAM, [*args, "--workdir", str(tmp_path)]) == cli.OK
    err, title = capsys.readouterr().err, method.STAGES[stage_name]
    assert err.count("became NaN") == 1
    assert f"{title} diverged at step 1: the loss became NaN or infinite; a lower --" in err
