import chex
import jax
import numpy as np
import pytest

from dcjax import training


def outcome(run):
    losses = np.concatenate([epoch.losses for epoch in run.fitted.history])
    return (
        run.trainer.finish(run.fitted.state),
        losses,
        training.evaluate(run.trainer, run.fitted.state, run.test),
    )


@pytest.mark.parametrize("devices", [2, 4])
def test_the_number_of_devices_changes_the_rounding_only(data_parallel, devices):
    run = data_parallel(devices)
    assert len(run.trainer.devices) == devices
    chex.assert_trees_all_close(outcome(run), outcome(data_parallel(1)), rtol=1e-4, atol=1e-6)


def test_the_batch_is_cut_over_the_devices(data_parallel):
    """Each device works on its part: no device gathers the images of the others."""
    run = data_parallel(4)
    program = run.trainer.step.as_text()
    assert "f32[4,8,8,4]" in program  # activations of a quarter of the batch of 16
    assert "f32[16,8,8,4]" not in program
    assert "all-gather" not in program
    assert "f32[16,8,8,4]" in data_parallel(1).trainer.step.as_text()


def test_a_step_moves_nothing_between_host_and_devices(study, data_parallel):
    run = data_parallel(4)
    state = run.trainer.start(jax.tree.map(lambda leaf: leaf[0], study.variables), study.key)
    with jax.transfer_guard("disallow_explicit"):
        order = run.trainer.shuffle(state, run.train)
        state, _ = run.trainer.step(state, run.train, order)
        run.trainer.step(state, run.train, order)


@pytest.mark.parametrize("devices", [1, 2])
def test_start_and_to_host_copy(study, data_parallel, devices):
    run = data_parallel(devices)
    variables = jax.tree.map(lambda leaf: leaf[0], study.variables)
    before = jax.tree.map(np.array, variables)
    state = run.trainer.start(variables, study.key)
    saved = run.trainer.to_host(state)
    run.trainer.step(state, run.train, run.trainer.shuffle(state, run.train))
    assert jax.tree.leaves(state.variables)[0].is_deleted()  # the step reuses its memory
    chex.assert_trees_all_equal(saved.variables, before)
    chex.assert_trees_all_equal(variables, before)


def test_to_devices_is_the_inverse_of_to_host(data_parallel):
    run = data_parallel(2)
    plain = run.trainer.to_host(run.fitted.state)
    again = run.trainer.to_host(run.trainer.to_devices(plain))
    chex.assert_trees_all_equal(again.variables, plain.variables)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(plain)} == {1}
