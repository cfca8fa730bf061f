"""What is put together wrongly is refused where it is, with what would be right."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import dcjax
from dcjax import training


class Plain(nn.Module):
    """A network whose call takes a batch only."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(self.width)(x)))


def whole(**recipe):
    made = training.Recipe(**{"optimizer": optax.sgd(0.1), "batch_size": 4} | recipe)
    return training.data_parallel(Plain(), dcjax.samples.replicate(2), made)


def test_sub_networks_are_composed_before_they_are_one_network():
    stacked = dcjax.init(Plain(), 2, jax.random.key(0), np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match=r"got 2 stacked sub-networks': dcjax\.compose\(stacked\)"):
        whole(train_kwargs={}).start(stacked, jax.random.key(1))


@pytest.mark.parametrize("kind", ["side_by_side", "data_parallel"])
def test_start_takes_a_key(kind, request, study):
    run = request.getfixturevalue(kind)(4)
    variables = study.variables
    if kind == "data_parallel":
        variables = jax.tree.map(lambda leaf: leaf[0], variables)
    with pytest.raises(TypeError, match=r"key is a random key such as .*, got int 0; the order"):
        run.phase.start(variables, 0)


def test_what_the_networks_call_does_not_take_is_said():
    x, labels = np.ones((8, 5), np.float32), np.zeros(8, int)
    variables = Plain().init(jax.random.key(0), x)
    as_it_is = {"augment": training.no_augment, "normalise": lambda x: x}
    phase = whole(**as_it_is)  # train=True is the recipe's default
    state, train = phase.start(variables, jax.random.key(1)), phase.place(x, labels)
    with pytest.raises(TypeError, match="unexpected keyword argument 'train'") as refused:
        training.fit(phase, state, train, 1)
    assert "Recipe(train_kwargs={}) gives nothing" in refused.value.__notes__[0]
    assert training.evaluate(phase, state, train).shape == (8, 3)
    phase = whole(**as_it_is, eval_kwargs={"train": False})
    with pytest.raises(TypeError) as refused:
        training.evaluate(phase, state, train)
    assert "Recipe(eval_kwargs={}) gives nothing" in refused.value.__notes__[0]


def test_data_that_are_no_images_have_a_recipe_of_their_own():
    """Vectors of floating-point numbers; each refusal names what the next try has."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(8, 5)).astype(np.float32), rng.integers(0, 3, 8)
    variables = Plain().init(jax.random.key(0), x)

    def fit(**recipe):
        phase = whole(train_kwargs={}, **recipe)
        return training.fit(
            phase, phase.start(variables, jax.random.key(1)), phase.place(x, labels), 1
        )

    with pytest.raises(ValueError, match=r"whole numbers from 0 to 255, got float32\(8, 5\); take"):
        fit()
    with pytest.raises(ValueError, match=r"crop_and_flip is for images .*augment=dcjax\.training"):
        fit(normalise=lambda x: x)
    assert fit(augment=training.no_augment, normalise=lambda x: x).history


def test_an_augmentation_may_make_floats_and_images_may_not_be_any():
    x, labels = np.full((8, 4, 4, 3), 255, np.uint8), np.zeros(8, int)

    def darker(key, images):
        return images * jax.random.uniform(key)

    network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    recipe = training.Recipe(optax.sgd(0.1), batch_size=4, augment=darker, train_kwargs={})
    phase = training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    state = phase.start(network.init(jax.random.key(0), x), jax.random.key(1))
    fitted = training.fit(phase, state, phase.place(x, labels), 1)
    with pytest.raises(ValueError, match=r"from 0 to 255, got float32\(4, 4, 4, 3\)"):
        training.evaluate(phase, fitted.state, phase.place((x / 255).astype(np.float32), labels))
