import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.training import sgd

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}


def updates(optimizer, gradient, steps):
    state = optimizer.init(PARAMS)
    for _ in range(steps):
        update, state = optimizer.update(gradient, state, PARAMS)
        yield update


def rates(steps, **options):
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    optimizer = sgd(0.5, steps=steps, weight_decay=0.0, momentum=0.0, **options)
    return [-float(update["bias"][0]) for update in updates(optimizer, ones, steps + 1)]


def test_the_rate_rises_in_a_line_and_falls_in_a_half_cosine():
    expected = [0.0, 0.25] + [0.25 * (1 + np.cos(np.pi * t / 4)) for t in range(5)]
    np.testing.assert_allclose(rates(6, warmup=2), expected, atol=1e-6)


def test_without_warmup_the_first_step_has_the_whole_rate():
    np.testing.assert_allclose(rates(2), [0.5, 0.25, 0.0], atol=1e-6)


def test_the_rate_may_end_above_zero():
    expected = [0.0, 0.25] + [0.3 + 0.1 * (1 + np.cos(np.pi * t / 4)) for t in range(5)]
    np.testing.assert_allclose(rates(6, warmup=2, final_rate=0.3), expected, atol=1e-6)
    np.testing.assert_allclose(rates(3, final_rate=0.5), [0.5] * 4, atol=1e-6)


@pytest.mark.parametrize("final", [-0.1, 0.6])
def test_the_rate_does_not_rise_to_its_end(final):
    with pytest.raises(ValueError, match="0 <= final_rate <= learning_rate"):
        sgd(0.5, steps=5, final_rate=final)


@pytest.mark.parametrize(
    "odd",
    [
        {"learning_rate": -1},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"learning_rate": "0.1"},
        {"learning_rate": lambda step: 0.1},
        {"steps": 0},
        {"steps": math.nan},
        {"steps": "10"},
        {"weight_decay": -1},
        {"weight_decay": math.nan},
        {"weight_decay": None},
        {"momentum": 1},
        {"momentum": -0.1},
        {"momentum": math.nan},
        {"momentum": "0.9"},
        {"final_rate": math.nan},
        {"warmup": "1"},
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_odd_arguments_are_named(odd):
    (name,) = odd
    with pytest.raises(ValueError, match=f"expected numbers with .* got .*{name}="):
        sgd(**{"learning_rate": 0.1, "steps": 5} | odd)


def test_only_kernels_decay():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    (update,) = updates(sgd(0.1, steps=5, weight_decay=0.01, momentum=0.0), zeros, 1)
    np.testing.assert_allclose(update["kernel"], -0.1 * 0.01)
    np.testing.assert_array_equal(update["bias"], 0)


def test_momentum_is_nesterovs():
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    (update,) = updates(sgd(0.1, steps=5, weight_decay=0.0, momentum=0.9), ones, 1)
    np.testing.assert_allclose(update["bias"], -0.1 * (1 + 0.9), rtol=1e-6)


@pytest.mark.parametrize("warmup", [-1, 5, 6])
def test_the_warmup_is_shorter_than_the_run(warmup):
    with pytest.raises(ValueError, match="0 <= warmup < steps"):
        sgd(0.1, steps=5, warmup=warmup)
