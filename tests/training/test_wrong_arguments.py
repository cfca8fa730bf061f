"""What is put together wrongly is refused where it is, with what would be right."""

import chex
import flax.errors
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import nnx

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


def test_a_donated_state_is_refused():
    x, labels = np.ones((8, 5), np.float32), np.zeros(8, int)
    trainer = whole(normalise=lambda x: x, train_kwargs={})
    variables = Plain().init(jax.random.key(0), x)
    state, train = trainer.start(variables, jax.random.key(1)), trainer.place(x, labels)
    training.fit(trainer, state, train, 1)
    with pytest.raises(ValueError, match="donated to an earlier fit or step"):
        training.fit(trainer, state, train, 2)


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


def side(subnet=None, samples=None, recipe=None, subnets=2):
    recipe = recipe or training.Recipe(optax.sgd(0.1), batch_size=4, train_kwargs={})
    return training.side_by_side(subnet or Plain(4), samples, recipe, subnets)


SGD = optax.sgd(0.1)
WRONG_PARTS = {
    "a name for the samples": (
        lambda: side(samples="replicate"),
        r"such as dcjax.samples.replicate\(K\), got str 'replicate'",
    ),
    "a way without its number": (
        lambda: side(samples=dcjax.samples.replicate),
        r"such as dcjax.samples.replicate\(K\), got function",
    ),
    "the order": (
        lambda: training.data_parallel(Plain(), training.Recipe(SGD), None),  # pyright: ignore
        r"dcjax.samples.replicate\(K\), got Recipe",
    ),
    "an optimiser for the recipe": (
        lambda: side(recipe=SGD),
        r"expected a recipe, dcjax.training.Recipe\(optimizer, …\)",
    ),
    "an optimiser's name": (
        lambda: whole(optimizer="adam"),
        r"such as optax.adam\(1e-3\), got str 'adam'",
    ),
    "an optimiser that was not made": (
        lambda: whole(optimizer=optax.adam),
        r"such as optax.adam\(1e-3\), got function",
    ),
    "no augmentation": (lambda: whole(augment=None), r"got NoneType None; dcjax.*no_augment"),
    "no normalisation": (lambda: whole(normalise=None), r"got NoneType None; lambda x: x"),
    "a name for the streams": (lambda: whole(rngs="dropout"), r"names, \('dropout',\), got a str"),
    "a batch of floats": (lambda: whole(batch_size=4.0), r"an int of at least 1, got float 4.0"),
    "empty batches": (lambda: whole(batch_size=0), r"an int of at least 1, got int 0"),
    "an average for ever": (lambda: whole(average=1 - 1e-16), r"average < 1, got float 0\.9"),
    "an average in words": (lambda: whole(average="0.9"), r"average < 1, got str '0.9'"),
    "a class": (lambda: side(Plain), r"got type .*; make an instance, Plain\(…\)"),
    "NNX": (lambda: side(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), r"dcjax.layout_of_functions"),
    "half a network": (lambda: side(subnets=2.0), r"must be an int, got 2.0"),
}


@pytest.mark.parametrize("name", WRONG_PARTS)
def test_what_a_trainer_cannot_be_made_of_is_refused_at_once(name):
    make, words = WRONG_PARTS[name]
    with pytest.raises((TypeError, ValueError), match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_without_samples_every_network_sees_the_images():
    x, labels = np.ones((8, 5), np.float32), np.zeros(8, int)
    recipe = training.Recipe(SGD, 4, normalise=lambda x: x, train_kwargs={})
    stacked = dcjax.init(Plain(), 2, jax.random.key(0), x)
    logits = {}
    for samples in (None, dcjax.samples.replicate(2)):
        trainer = training.data_parallel(Plain(), samples, recipe)
        state = trainer.start(dcjax.compose(stacked), jax.random.key(1))
        narrow = side(samples=samples, recipe=recipe)
        both = narrow.start(stacked, jax.random.key(1))
        logits[samples] = [
            training.evaluate(trainer, state, trainer.place(x, labels)),
            training.evaluate(narrow, both, narrow.place(x, labels)),
        ]
    chex.assert_trees_all_equal(*logits.values())


@pytest.fixture(scope="module")
def two():
    """Two trainers, of one network and of two, with a state and data of each."""
    x, labels = np.ones((8, 5), np.float32), np.zeros(8, int)
    recipe = training.Recipe(SGD, 4, normalise=lambda x: x, train_kwargs={})
    stacked = dcjax.init(Plain(), 2, jax.random.key(0), x)
    made = []
    for trainer, variables in (
        (training.data_parallel(Plain(), None, recipe), dcjax.compose(stacked)),
        (side(recipe=recipe), stacked),
    ):
        state = trainer.start(variables, jax.random.key(1))
        made.append((trainer, state, trainer.place(x, labels)))
    return made


@pytest.mark.parametrize("run", [training.evaluate, lambda *args: training.fit(*args, epochs=1)])
@pytest.mark.parametrize("own", [0, 1])
def test_state_and_data_are_those_of_the_trainer(two, own, run):
    (trainer, state, data), (_, other, others) = two[own], two[1 - own]
    with pytest.raises(
        TypeError, match=r"expected a Data, .*place.*, got ndarray of shape \(8, 5\)"
    ):
        run(trainer, state, np.ones((8, 5)))
    with pytest.raises(TypeError, match=r"expected a TrainState, .*, got dict"):
        run(trainer, {}, data)
    with pytest.raises(TypeError, match=r"expected a TrainState, .*, got Data .*; the order"):
        run(trainer, data, state)
    with pytest.raises(ValueError, match=r"a state of this trainer, of (one |2 sub-)network"):
        run(trainer, other, data)
    with pytest.raises(ValueError, match=r"a state of this trainer.* trainer.to_devices\("):
        run(trainer, trainer.to_host(two[1][1]) if own else other, data)
    with pytest.raises(ValueError, match=r"data of this trainer, .*trainer.place\("):
        run(trainer, state, others)


@pytest.mark.parametrize("own", [0, 1])
def test_finish_takes_a_state_of_its_trainer(two, own):
    (trainer, state, _), (_, other, _) = two[own], two[1 - own]
    with pytest.raises(ValueError, match=r"a state of this trainer, of (one |2 sub-)network"):
        trainer.finish(other)
    with pytest.raises(TypeError, match=r"expected a TrainState, .*got Fit.*the state alone"):
        trainer.finish(training.Fit(state, [], 0.0))


def test_states_are_moved_by_their_own_trainer(two):
    (_, one, _), (side_by_side, both, _) = two
    with pytest.raises(ValueError, match=r"(?s)leading axes \(\d.*step: shape \(\)"):
        side_by_side.to_host(one)
    with pytest.raises(ValueError, match=r"leading axes \(2,\), got\n  step: shape \(1, 2\)"):
        side_by_side.to_devices(both._replace(step=np.zeros((1, 2), int)))


def test_variables_are_those_of_the_trainers_network(two):
    """Flax names the leaf; a note says which network and variables the trainer takes."""
    x, labels = np.ones((8, 5), np.float32), np.zeros(8, int)
    recipe = training.Recipe(SGD, 4, normalise=lambda x: x, train_kwargs={})
    stacked = dcjax.init(Plain(), 2, jax.random.key(0), x)
    variables, key = dcjax.compose(stacked), jax.random.key(1)
    for trainer, given, words in (
        (side(Plain(8), None, recipe), stacked, "takes the sub-network, dcjax.decompose(network"),
        (training.data_parallel(Plain(4), None, recipe), variables, "takes the global network"),
    ):
        state, data = trainer.start(given, key), trainer.place(x, labels)
        for run in (training.evaluate, lambda *args: training.fit(*args, epochs=1)):
            with pytest.raises(flax.errors.ScopeParamShapeError) as error:
                run(trainer, state, data)
            assert words in "".join(error.value.__notes__)
            assert "a batch of shape (4, 5)" in "".join(error.value.__notes__)
    with pytest.raises(ValueError, match=r"(?s)leading axis of 2.*shape \(8,\).*dcjax.extract\("):
        two[1][0].start(variables, key)
    for trainer, *_ in two:
        with pytest.raises(ValueError, match=r"all of a network's variables.*got NoneType None"):
            trainer.start(None, key)


def test_splits_that_cannot_be_meant_are_refused():
    trainer, labels = whole(), np.zeros(8, int)
    images = np.zeros((8, 3, 16, 16), np.uint8)
    with pytest.raises(ValueError, match=r"channels come first: images.transpose\(0, 2, 3, 1\)"):
        trainer.place(images, labels)
    assert trainer.place(images.transpose(0, 2, 3, 1), labels).images.shape == (8, 16, 16, 3)
    with pytest.raises(ValueError, match=r"labels.argmax\(-1\) makes integers"):
        trainer.place(images, np.eye(8))
    with pytest.raises(ValueError, match=r"the order is place\(images, labels\)"):
        trainer.place(labels, images)
    with pytest.raises(ValueError, match=r"at least one image"):
        trainer.place(images[:0], labels[:0])
