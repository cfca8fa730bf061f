"""Training within a mesh of the caller's, with partition metadata, and with mapped axes."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import dcjax
from dcjax import training

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(32) % 3


class Net(nn.Module):
    """A convolution and a head, with whatever a test needs added."""

    width: int = 8
    axis_name: str | None = None
    partitioned: bool = False

    @nn.compact
    def __call__(self, x, train):
        init = nn.initializers.lecun_normal()
        if self.partitioned:
            init = nn.with_partitioning(init, (None, None, None, "model"))
        x = nn.Conv(self.width, (3, 3), kernel_init=init)(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x)
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


def whole_method(network):
    """Return the global variables after training, composition and fine-tuning, and the logits."""
    samples = dcjax.samples.replicate(2)
    recipe = training.Recipe(optax.sgd(0.1), 16, eval_kwargs={"train": False})
    stacked = dcjax.init(network, 2, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    variables = stacked
    for make in (
        lambda: training.side_by_side(dcjax.decompose(network, 2), samples, recipe, 2),
        lambda: training.data_parallel(network, samples, recipe),
    ):
        if isinstance(variables, dcjax.Stacked) and variables is not stacked:
            variables = dcjax.compose(variables)
        trainer = make()
        train = trainer.place(IMAGES, LABELS)
        fitted = training.fit(trainer, trainer.start(variables, jax.random.key(1)), train, 1)
        logits = training.evaluate(trainer, fitted.state, train)
        variables = trainer.finish(fitted.state)
    return variables, logits


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_of_the_callers_changes_nothing(axis_type):
    expected = whole_method(Net())
    with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(axis_type,))):
        found = whole_method(Net())
        logits = Net().apply(found[0], jnp.ones((1, 8, 8, 3)), train=False)
    chex.assert_trees_all_equal(found, expected)
    assert np.isfinite(logits).all()


def test_partition_metadata_is_removed():
    chex.assert_trees_all_equal(whole_method(Net(partitioned=True)), whole_method(Net()))


def test_boxed_variables_are_refused_with_the_function_that_unboxes_them():
    network, x = Net(partitioned=True), jnp.zeros((1, 8, 8, 3))
    subnet = dcjax.decompose(network, 2)
    boxed = [subnet.init(jax.random.key(k), x, train=False) for k in range(2)]
    layout = dcjax.layout(network, 2, x, train=False)
    with pytest.raises(ValueError, match=r"Conv_0/kernel/value: has metadata; flax.linen.meta"):
        dcjax.stack(boxed, like=layout)
    dcjax.stack([nn.meta.unbox(tree) for tree in boxed], like=layout)


def test_a_network_that_averages_over_devices_is_refused_by_name():
    with pytest.raises(ValueError, match=r"BatchNorm\(axis_name=…\) does: leave axis_name out"):
        whole_method(Net(axis_name="batch"))


@pytest.mark.parametrize("kwargs", [{}, {"train": False, "deterministic": True}])
def test_arguments_that_do_not_fit_the_call_are_refused_with_the_way_to_give_them(kwargs):
    x = jnp.zeros((1, 8, 8, 3))
    match = r"Net's call: .*'(train|deterministic)'.*keyword.*train=False"
    with pytest.raises(TypeError, match=match):
        dcjax.layout(Net(), 2, x, **kwargs)
    with pytest.raises(TypeError, match=match):
        dcjax.init(Net(), 2, jax.random.key(0), x, **kwargs)


def test_labels_beyond_the_classes_are_refused():
    network, samples = Net(), dcjax.samples.replicate(2)
    recipe = training.Recipe(optax.sgd(0.1), 16)
    stacked = dcjax.init(network, 2, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    trainer = training.side_by_side(dcjax.decompose(network, 2), samples, recipe, 2)
    state = trainer.start(stacked, jax.random.key(1))
    with pytest.raises(ValueError, match="labels go from 0 to 2, got 3; subtract 1"):
        training.fit(trainer, state, trainer.place(IMAGES, LABELS + 1), 1)
    assert training.fit(trainer, state, trainer.place(IMAGES, LABELS), 1).history


def test_labels_of_another_loss_may_be_larger_than_the_logits_are_many():
    recipe = training.Recipe(optax.sgd(0.1), 16, loss=lambda logits, y: (logits[:, 0] - y) ** 2)
    samples = dcjax.samples.replicate(1)
    trainer = training.data_parallel(Net(), samples, recipe)
    variables = Net().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    state = trainer.start(variables, jax.random.key(1))
    assert training.fit(trainer, state, trainer.place(IMAGES, LABELS + 90), 1).history
