"""A checkpoint of a trainer goes on with another number of devices."""

import chex
import jax
import pytest

from dcjax import training
from dcjax.checkpoints import Checkpoints


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("kind", ["side_by_side", "data_parallel"])
def test_it_goes_on_with_other_devices_to_the_same_values(kind, devices, study, request, tmp_path):
    make = request.getfixturevalue(kind)
    before, after = make(4), make(devices)
    side = kind == "side_by_side"
    variables = study.variables if side else jax.tree.map(lambda leaf: leaf[0], study.variables)
    state = before.trainer.start(variables, study.key)
    state = training.fit(before.trainer, state, before.train, 1).state
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(training.steps_done(state), before.trainer.to_host(state), {})
    like = after.trainer.to_host(after.trainer.start(variables, study.key))
    state = after.trainer.to_devices(checkpoints.load().into(like))
    fitted = training.fit(after.trainer, state, after.train, 2)
    expected = before.trainer.to_host(before.fitted.state)
    actual = after.trainer.to_host(fitted.state)
    compare = chex.assert_trees_all_equal if side else chex.assert_trees_all_close
    options = {} if side else {"rtol": 1e-4, "atol": 1e-5}
    compare(actual.variables, expected.variables, **options)
    compare(actual.opt_state, expected.opt_state, **options)
    assert training.steps_done(actual) == training.steps_done(expected) == 6
