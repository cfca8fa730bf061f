import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcjax
from dcjax import training
from dcjax.training._learner import _NETWORK, _stream

# The names of communication between devices in a compiled program.
COLLECTIVES = re.compile(
    r"\b(?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast)(?:-start)?\("
)


def member(tree, k):
    return jax.tree.map(lambda leaf: leaf[k], tree)


def outcome(run):
    """Everything that training leaves, in plain form: keys as numbers."""
    state = run.trainer.to_host(run.fitted.state)
    losses = np.concatenate([epoch.losses for epoch in run.fitted.history])
    return state._replace(key=jax.random.key_data(state.key)), losses.T


def assert_same_bits(actual, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    chex.assert_trees_all_equal(actual, expected)


@pytest.mark.parametrize("k", range(4))
def test_one_trained_alone_is_bitwise_the_one_trained_beside_others(side_by_side, k):
    alone, together = side_by_side(1, (k,)), side_by_side(4)
    assert_same_bits(member(outcome(alone), 0), member(outcome(together), k))


def test_several_on_a_device_are_bitwise_those_on_devices_of_their_own(side_by_side):
    several = side_by_side(3)
    assert len(several.trainer.devices) == 2
    assert_same_bits(outcome(several), outcome(side_by_side(4)))


def test_subnetworks_differ_in_order_augmentation_and_outcome(study, side_by_side):
    run = side_by_side(4)
    order = run.trainer.to_host(run.trainer.shuffle(run.fitted.state, run.train))
    assert order.shape == (4, 3, 16)
    for k in range(4):
        assert len(np.unique(order[k])) == 48
        assert order[k].max() < 50
        assert not np.array_equal(order[k], order[k - 1])


def test_every_epoch_has_its_order(study, side_by_side):
    run = side_by_side(4)
    first = run.trainer.shuffle(run.trainer.start(study.variables, study.key), run.train)
    assert not np.array_equal(first, run.trainer.shuffle(run.fitted.state, run.train))


def test_nothing_is_communicated(side_by_side):
    for run in (side_by_side(4), side_by_side(3)):
        for program in (run.trainer.shuffle, run.trainer.step, run.trainer.forward):
            assert not COLLECTIVES.search(program.as_text())


def test_the_data_parallel_step_does_communicate(data_parallel):
    assert COLLECTIVES.search(data_parallel(4).trainer.step.as_text())


def test_a_step_moves_nothing_between_host_and_devices(study, side_by_side):
    run = side_by_side(4)
    state = run.trainer.start(study.variables, study.key)
    with jax.transfer_guard("disallow_explicit"):
        order = run.trainer.shuffle(state, run.train)
        state, _ = run.trainer.step(state, run.train, order)
        run.trainer.step(state, run.train, order)


def test_nan_stays_in_its_subnetwork(study, side_by_side):
    run = side_by_side(4)
    clean = run.trainer.start(study.variables, study.key)
    plain = run.trainer.to_host(clean)
    head = plain.variables["params"]["Dense_0"]
    head["kernel"] = head["kernel"].at[2, 0, 0].set(jnp.nan)
    with pytest.warns(RuntimeWarning, match="sub-network 2 at step 1"):
        sick = training.fit(run.trainer, run.trainer.to_devices(plain), run.train, epochs=2)

    losses = np.concatenate([epoch.losses for epoch in sick.history])
    assert np.isnan(losses[:, 2]).all()
    actual, expected = outcome(run._replace(fitted=sick)), outcome(run)
    for k in (0, 1, 3):
        assert_same_bits(member(actual, k), member(expected, k))


def test_the_first_step_is_a_step_down_the_gradient(study):
    """Against a plain computation, without the engine's loop, map, or keys."""
    rate, k = 0.05, 1
    samples = dcjax.samples.phases(4)
    network = study.network
    recipe = training.Recipe(optax.sgd(rate), batch_size=16, augment=training.no_augment)
    variables = jax.tree.map(lambda leaf: leaf[:1], study.variables)
    trainer = training.side_by_side(network, samples, recipe, 4, members=[k])
    train = trainer.place(*study.train)
    state = trainer.start(variables, study.key)
    order = trainer.shuffle(state, train)
    chosen = np.asarray(trainer.to_host(order))[0, 0]
    key = trainer.to_host(state).key[0]

    def cost(params):
        x = samples.split(recipe.normalise(jnp.asarray(study.train[0][chosen])))[k]
        logits, _ = network.apply(
            {**member(variables, 0), "params": params},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key(key)},
        )
        return recipe.loss(logits, jnp.asarray(study.train[1][chosen])).mean()

    params = member(variables, 0)["params"]
    loss, gradient = jax.jit(jax.value_and_grad(cost))(params)
    expected = jax.tree.map(lambda p, g: p - rate * g, params, gradient)

    state, losses = trainer.step(state, train, order)
    np.testing.assert_allclose(losses, loss, rtol=1e-5)
    actual = member(trainer.finish(state), 0)["params"]
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-6)


def dropout_key(key, step=0):
    return jax.random.fold_in(_stream(key, _NETWORK, step), 0)


def test_start_and_to_host_copy(study, side_by_side):
    run = side_by_side(1, (0,))
    variables = jax.tree.map(lambda leaf: leaf[:1].copy(), study.variables)
    state = run.trainer.start(variables, study.key)
    saved = run.trainer.to_host(state)
    after, _ = run.trainer.step(state, run.train, run.trainer.shuffle(state, run.train))
    assert jax.tree.leaves(state.variables)[0].is_deleted()  # the step reuses its memory
    chex.assert_trees_all_equal(saved.variables, variables)
    assert int(run.trainer.to_host(after).step[0]) == 1


def test_a_stacked_stays_one(study):
    layout = dcjax.Layout(4, ())
    trainer = training.side_by_side(study.network, study.samples, study.recipe, 4)
    state = trainer.start(dcjax.Stacked(study.variables, layout), study.key)
    train = trainer.place(*study.train)
    order = jax.eval_shape(trainer.shuffle, state, train)
    after, _ = jax.eval_shape(trainer.step, state, train, order)
    for variables in (trainer.finish(state), after.variables):
        assert isinstance(variables, dcjax.Stacked)
        assert variables.layout is layout
    chex.assert_trees_all_equal(trainer.finish(state).tree, study.variables)


def test_variables_of_another_number_of_subnetworks_are_refused(study):
    trainer = training.side_by_side(study.network, study.samples, study.recipe, 4, members=[1, 2])
    with pytest.raises(ValueError, match=r"of 2 sub-networks, .*\n  .*: shape \(4, "):
        trainer.start(study.variables, study.key)


@pytest.mark.parametrize("members", [[], [4], [-1], [1, 1]])
def test_members_are_numbers_of_subnetworks(study, members):
    with pytest.raises(ValueError, match="different numbers from 0 to 3"):
        training.side_by_side(study.network, study.samples, study.recipe, 4, members=members)


def test_samples_for_another_number_of_subnetworks_are_refused(study):
    samples = dcjax.samples.replicate(3)
    trainer = training.side_by_side(study.network, samples, study.recipe, 4)
    state, train = trainer.start(study.variables, study.key), trainer.place(*study.train)
    with pytest.raises(ValueError, match="3 inputs for 4 sub-networks"):
        trainer.step(state, train, trainer.shuffle(state, train))
