"""A checkpoint of a phase goes on with another number of devices."""

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
    state = before.phase.start(variables, study.key)
    state = training.fit(before.phase, state, before.train, 1).state
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(training.steps_done(state), before.phase.gather(state), {})
    like = after.phase.gather(after.phase.start(variables, study.key))
    state = after.phase.spread(checkpoints.load().into(like))
    fitted = training.fit(after.phase, state, after.train, 2)
    expected = before.phase.gather(before.fitted.state)
    actual = after.phase.gather(fitted.state)
    compare = chex.assert_trees_all_equal if side else chex.assert_trees_all_close
    options = {} if side else {"rtol": 1e-4, "atol": 1e-5}
    compare(actual.variables, expected.variables, **options)
    compare(actual.opt_state, expected.opt_state, **options)
    assert training.steps_done(actual) == training.steps_done(expected) == 6
