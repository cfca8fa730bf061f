"""The average of the variables that a recipe may keep."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcjax
from dcjax import training
from dcjax.training._learner import _averaged

DECAY = 0.75


@pytest.fixture(params=["side by side", "data-parallel"])
def phase(request, study):
    recipe = study.recipe._replace(average=DECAY)
    if request.param == "side by side":
        return training.side_by_side(study.network, study.samples, recipe, len(study.samples))
    return training.data_parallel(study.network, study.samples, recipe)


def first(phase, study):
    """The variables that a phase starts from."""
    return study.variables if phase.lead else jax.tree.map(lambda leaf: leaf[0], study.variables)


def test_it_is_exponential_and_starts_at_the_first_variables(phase, study):
    data = phase.place(*study.train)
    state = phase.start(first(phase, study), study.key)
    order = phase.shuffle(state, data)
    expected = jax.tree.map(np.asarray, first(phase, study))
    for _ in range(3):
        state, _ = phase.step(state, data, order)
        new = phase.gather(state).variables
        expected = jax.tree.map(lambda a, v: DECAY * a + (1 - DECAY) * v, expected, new)
    chex.assert_trees_all_close(phase.finish(state), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(phase.finish(state), new, rtol=1e-3)


def test_it_is_what_is_evaluated_and_changes_no_training(phase, study):
    data = phase.place(*study.train)
    fitted = training.fit(phase, phase.start(first(phase, study), study.key), data, epochs=1)
    got = training.evaluate(phase, fitted.state, data)
    averaged = fitted.state._replace(variables=fitted.state.averaged, averaged=None)
    np.testing.assert_array_equal(got, training.evaluate(phase, averaged, data))

    recipe = study.recipe
    if phase.lead:
        plain = training.side_by_side(study.network, study.samples, recipe, len(study.samples))
    else:
        plain = training.data_parallel(study.network, study.samples, recipe)
    alone = training.fit(plain, plain.start(first(phase, study), study.key), data, epochs=1)
    assert alone.state.averaged is None
    chex.assert_trees_all_close(
        plain.gather(alone.state).variables, phase.gather(fitted.state).variables, rtol=1e-6
    )


def test_whole_numbers_are_the_newest():
    old = {"count": np.int32(3), "mean": np.float32(1)}
    new = {"count": np.int32(7), "mean": np.float32(2)}
    assert _averaged(DECAY, old, new) == {"count": 7, "mean": 1.25}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_it_moves_in_half_precision(dtype, study):
    """A hundredth of a difference is below what such numbers hold: the average is of float32."""
    recipe = study.recipe._replace(average=0.99, optimizer=optax.sgd(1e-2))
    phase = training.data_parallel(study.network, study.samples, recipe)
    half = jax.tree.map(lambda leaf: leaf[0], study.variables)
    half = half | {"params": jax.tree.map(lambda leaf: leaf.astype(dtype), half["params"])}
    data, state = phase.place(*study.train), phase.start(half, study.key)
    order, before = phase.shuffle(state, data), jax.tree.map(np.asarray, half)
    for _ in range(3):
        state, _ = phase.step(state, data, order)
    finished = phase.finish(state)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(finished)} == {jnp.dtype(dtype)}
    averaged = phase.gather(state).averaged["params"]
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
