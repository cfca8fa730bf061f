"""The average of the variables that a recipe may keep."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcjax
from dcjax import training
from dcjax.training._learner import _mix

DECAY = 0.75


@pytest.fixture(params=["side by side", "data-parallel"])
def trainer(request, study):
    recipe = study.recipe._replace(average=DECAY)
    if request.param == "side by side":
        return training.side_by_side(study.network, study.samples, recipe, len(study.samples))
    return training.data_parallel(study.network, study.samples, recipe)


def first(trainer, study):
    """The variables that a trainer starts from."""
    return study.variables if trainer.lead else jax.tree.map(lambda leaf: leaf[0], study.variables)


def test_it_is_exponential_and_starts_at_the_first_variables(trainer, study):
    data = trainer.place(*study.train)
    state = trainer.start(first(trainer, study), study.key)
    order = trainer.shuffle(state, data)
    expected = jax.tree.map(np.asarray, first(trainer, study))
    for _ in range(3):
        state, _ = trainer.step(state, data, order)
        new = trainer.to_host(state).variables
        expected = jax.tree.map(lambda a, v: DECAY * a + (1 - DECAY) * v, expected, new)
    chex.assert_trees_all_close(trainer.finish(state), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(trainer.finish(state), new, rtol=1e-3)


def test_it_is_what_is_evaluated_and_changes_no_training(trainer, study):
    data = trainer.place(*study.train)
    fitted = training.fit(trainer, trainer.start(first(trainer, study), study.key), data, epochs=1)
    got = training.evaluate(trainer, fitted.state, data)
    averaged = fitted.state._replace(variables=fitted.state.averaged, averaged=None)
    np.testing.assert_array_equal(got, training.evaluate(trainer, averaged, data))

    recipe = study.recipe
    if trainer.lead:
        plain = training.side_by_side(study.network, study.samples, recipe, len(study.samples))
    else:
        plain = training.data_parallel(study.network, study.samples, recipe)
    alone = training.fit(plain, plain.start(first(trainer, study), study.key), data, epochs=1)
    assert alone.state.averaged is None
    chex.assert_trees_all_close(
        plain.to_host(alone.state).variables, trainer.to_host(fitted.state).variables, rtol=1e-6
    )


@pytest.mark.usefixtures("unchecked")
def test_counters_are_not_averaged():
    assert _mix(DECAY, jnp.int32(3), jnp.int32(7)) == 7
    assert _mix(DECAY, jnp.float32(1), jnp.float32(2)) == 1.25


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_it_changes_in_half_precision(dtype, study):
    """A hundredth of a difference is below what such numbers hold: the average is of float32."""
    recipe = study.recipe._replace(average=0.99, optimizer=optax.sgd(1e-2))
    trainer = training.data_parallel(study.network, study.samples, recipe)
    half = jax.tree.map(lambda leaf: leaf[0], study.variables)
    half = half | {"params": jax.tree.map(lambda leaf: leaf.astype(dtype), half["params"])}
    data, state = trainer.place(*study.train), trainer.start(half, study.key)
    order, before = trainer.shuffle(state, data), jax.tree.map(np.asarray, half)
    for _ in range(3):
        state, _ = trainer.step(state, data, order)
    finished = trainer.finish(state)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(finished)} == {jnp.dtype(dtype)}
    averaged = trainer.to_host(state).averaged["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(averaged)} == {jnp.dtype(jnp.float32)}
    same = jax.tree.map(lambda a, b: np.mean(a == b), averaged, before["params"])
    assert min(jax.tree.leaves(same)) < 0.1


@pytest.mark.parametrize("average", [-0.1, 1.0, float("nan")])
def test_a_decay_is_from_0_to_below_1(average):
    recipe = training.Recipe(training.sgd(0.1, steps=2), average=average)
    with pytest.raises(ValueError, match="0 <= average < 1"):
        training.data_parallel(
            dcjax.models.CNN(width=4, num_classes=3), dcjax.samples.replicate(2), recipe
        )
