"""How many programs a trainer compiles, beside those of its steps."""

import jax
import numpy as np
import optax

import dcjax
from dcjax import training
from tests.training.compilations import compilations


def carry_around(width, stages):
    """Do what a trainer's states go through beside its steps."""
    network = dcjax.models.CNN(width, 10, stages)
    stacked = dcjax.init(network, 4, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    recipe = training.Recipe(optax.sgd(0.1, 0.9), batch_size=4, average=0.5)
    samples, one = dcjax.samples.replicate(4), jax.devices()[:1]
    narrow = dcjax.decompose(network, 4)
    for trainer, variables in (
        (training.side_by_side(narrow, samples, recipe, 4, devices=one), stacked),
        (training.data_parallel(network, samples, recipe, devices=one), dcjax.compose(stacked)),
    ):
        state = trainer.start(variables, jax.random.key(1))
        trainer.to_devices(trainer.to_host(state))
        trainer.finish(state)
    params = stacked["params"]
    opt_state = jax.jit(recipe.optimizer.init)(params)
    dcjax.compose_opt_state(recipe.optimizer, opt_state, params)
    dcjax.stack(dcjax.unstack(stacked), like=stacked)


def test_the_number_of_programs_does_not_grow_with_the_network():
    """The kernels of one network have no shape in common with those of another."""
    carry_around(16, 1)  # compiles what does not depend on the network
    counts = []
    for width, stages in ((20, 1), (28, 3)):
        with compilations() as found:
            carry_around(width, stages)
        counts.append(len(found))
    assert 0 < counts[1] <= counts[0]
