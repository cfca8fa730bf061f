"""How many programs a trainer compiles, beside those of its steps."""

import contextlib

import jax
import numpy as np
import optax

import dcjax
from dcjax import training


@contextlib.contextmanager
def compilations():
    """The names of what JAX compiles meanwhile."""
    found = []

    def listen(event, seconds, **more):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(more.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def carry_around(stages):
    """What a trainer's states go through beside its steps; every stage has shapes of its own."""
    network = dcjax.models.CNN(8, 10, stages)
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
    counts = []
    for stages in (1, 3):
        jax.clear_caches()
        with compilations() as found:
            carry_around(stages)
        counts.append(len(found))
    assert 0 < counts[1] <= counts[0]
