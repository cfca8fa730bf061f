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


def test_data_parallel_refuses_stacked_variables():
    stacked = dcjax.init(Plain(), 2, jax.random.key(0), np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match=r"those of 2 stacked sub-networks; compose them"):
        whole(train_kwargs={}).start(stacked, jax.random.key(1))


@pytest.mark.parametrize("kind", ["side_by_side", "data_parallel"])
def test_start_takes_a_key(kind, request, study):
    run = request.getfixturevalue(kind)(4)
    variables = study.variables
    if kind == "data_parallel":
        variables = jax.tree.map(lambda leaf: leaf[0], variables)
    with pytest.raises(TypeError, match=r"key must be a random key .*, got int 0; the order"):
        run.trainer.start(variables, 0)


def test_arguments_that_the_networks_call_does_not_take_are_named():
    x, labels = np.ones((8, 5), np.float32), np.zeros(8, int)
    variables = Plain().init(jax.random.key(0), x)
    as_it_is = {"normalise": lambda x: x}
    trainer = whole(**as_it_is)  # train=True is the recipe's default
    state, train = trainer.start(variables, jax.random.key(1)), trainer.place(x, labels)
    with pytest.raises(TypeError, match="unexpected keyword argument 'train'"):
        training.fit(trainer, state, train, 1)
    assert training.evaluate(trainer, state, train).shape == (8, 3)
    trainer = whole(**as_it_is, eval_kwargs={"train": False})
    with pytest.raises(TypeError, match="unexpected keyword argument 'train'"):
        training.evaluate(trainer, state, train)


def test_data_other_than_images_need_another_recipe():
    """Each refusal names the argument that the next try gives."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(8, 5)).astype(np.float32), rng.integers(0, 3, 8)
    variables = Plain().init(jax.random.key(0), x)

    def fit(**recipe):
        trainer = whole(train_kwargs={}, **recipe)
        return training.fit(
            trainer, trainer.start(variables, jax.random.key(1)), trainer.place(x, labels), 1
        )

    with pytest.raises(ValueError, match=r"crop_and_flip expects images .*augment=dcjax\.training"):
        fit(augment=training.crop_and_flip)
    with pytest.raises(ValueError, match=r"from 0 to 255, got float32\(4, 5\); .*normalise="):
        fit()
    assert fit(normalise=lambda x: x).history


def test_scaled_images_are_refused_in_training_and_in_evaluation():
    x, labels = np.ones((8, 4, 4, 3), np.float32), np.zeros(8, int)
    network = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)])
    recipe = training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    trainer = training.data_parallel(network, dcjax.samples.replicate(1), recipe)
    state = trainer.start(network.init(jax.random.key(0), x), jax.random.key(1))
    data, words = trainer.place(x, labels), r"from 0 to 255, got float32\(4, 4, 4, 3\)"
    with pytest.raises(ValueError, match=words):
        training.evaluate(trainer, state, data)
    with pytest.raises(ValueError, match=words):
        training.fit(trainer, state, data, 1)
