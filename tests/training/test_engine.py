"""Every engine trains the same networks; the backends choose by speed alone."""

import chex
import jax
import numpy as np
import pytest

from dcjax import training
from dcjax.training._devices import engine_for
from tests.training.compilations import compilations

ENGINES = [
    training.Engine(members, whole) for members in ("unrolled", "map") for whole in (False, True)
]


def outcome(trainer, fitted):
    return trainer.finish(fitted.state), np.concatenate([e.losses for e in fitted.history])


def side(study, engine):
    devices = jax.devices()[:2]  # two sub-networks on each
    return training.side_by_side(
        study.network, study.samples, study.recipe, 4, devices=devices, engine=engine
    )


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_every_engine_trains_the_same_subnetworks(study, side_by_side, engine):
    trainer = side(study, engine)
    state, train = trainer.start(study.variables, study.key), trainer.place(*study.train)
    told = []
    fitted = training.fit(
        trainer, state, train, 2, on_step=lambda step, state: told.append((step, state.step.shape))
    )
    expected = side_by_side(4)
    chex.assert_trees_all_close(
        outcome(trainer, fitted), outcome(expected.trainer, expected.fitted), rtol=1e-4, atol=1e-5
    )
    steps = [3, 6] if engine.whole_epochs else [1, 2, 3, 4, 5, 6]
    assert told == [(step, (2, 2)) for step in steps]


@pytest.mark.parametrize("kind", ["side_by_side", "data_parallel"])
def test_whole_epochs_go_on_from_the_middle_of_one(study, kind, request):
    expected = request.getfixturevalue(kind)(2)
    engine = training.Engine("unrolled", True)
    if kind == "side_by_side":
        trainer, variables = side(study, engine), study.variables
    else:
        trainer = training.data_parallel(
            study.network, study.samples, study.recipe, devices=jax.devices()[:2], engine=engine
        )
        variables = jax.tree.map(lambda leaf: leaf[0], study.variables)
    train = trainer.place(*study.train)
    state = trainer.start(variables, study.key)
    order = trainer.shuffle(state, train)
    state, _ = trainer.step(state, train, order)
    fitted = training.fit(trainer, state, train, 2)
    assert [len(epoch.losses) for epoch in fitted.history] == [2, 3]
    chex.assert_trees_all_close(
        trainer.finish(fitted.state),
        expected.trainer.finish(expected.fitted.state),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("every", [2, 6])
def test_records_within_epochs_take_single_steps(study, side_by_side, every):
    """Unless epochs end at every record. Nothing is compiled while training is timed."""
    trainer = side(study, training.Engine("unrolled", True))
    state, train = trainer.start(study.variables, study.key), trainer.place(*study.train)
    trainer, _ = training.compile(trainer, state, train, every=every)
    steps = []
    with compilations() as found:
        fitted = training.fit(
            trainer, state, train, 2, every=every, on_step=lambda step, state: steps.append(step)
        )
    assert steps == ([1, 2, 3, 4, 5, 6] if every == 2 else [3, 6])
    assert not found
    chex.assert_trees_all_close(
        trainer.finish(fitted.state),
        side_by_side(4).trainer.finish(side_by_side(4).fitted.state),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_backends_choose_by_speed():
    assert engine_for("cpu") == training.Engine("unrolled", False)
    assert engine_for("gpu").whole_epochs
