"""Copies that train apart: against data-parallel training, and against a plain loop."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcjax import training
from tests.training import small

KEY = jax.random.key


class NoStatistics(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


def recipe(optimizer, **options):
    return training.Recipe(optimizer, batch_size=16, **options)


def train(trainer, network, epochs=2):
    variables = network.init(KEY(0), jnp.zeros((1, 8, 8, 3)))
    state = trainer.start(variables, KEY(1))
    return training.fit(trainer, state, trainer.place(*small.images(50)), epochs)


@pytest.mark.parametrize("outer", [None, optax.sgd(1.0)])
def test_an_average_after_every_step_is_data_parallel_training(outer):
    network, plain = NoStatistics(), recipe(optax.sgd(0.1))
    apart = training.rarely_averaged(
        network, None, plain, every=1, outer=outer, devices=jax.devices()[:4]
    )
    together = training.data_parallel(network, None, plain, devices=jax.devices()[:4])
    fits = train(apart, network), train(together, network)
    results = apart.finish(fits[0].state), together.finish(fits[1].state)
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)
    losses = [np.concatenate([epoch.losses for epoch in each.history]) for each in fits]
    np.testing.assert_allclose(losses[0].mean(-1), losses[1], rtol=1e-5)


@pytest.mark.parametrize("outer", [None, optax.sgd(0.7, momentum=0.9, nesterov=True)])
def test_a_plain_loop_over_the_copies_gives_the_same(outer):
    """Two copies, each as data-parallel training of its half of every batch, averaged by hand."""
    network, momentum = small.Net(4), recipe(optax.sgd(0.05, momentum=0.9))
    trainer = training.rarely_averaged(
        network, None, momentum, every=2, outer=outer, devices=jax.devices()[:2]
    )
    variables = network.init(KEY(0), jnp.zeros((1, 8, 8, 3)))
    data = trainer.place(*small.images(50))
    state = trainer.start(variables, KEY(1))
    order = np.asarray(trainer.shuffle(state, data))[:, 0]  # copies, steps, examples
    assert {*order.ravel().tolist()} <= {*range(50)}
    assert len({*order.ravel().tolist()}) == order.size  # nobody sees another's examples
    fitted = training.fit(trainer, state, data, epochs=1)

    images, labels = small.images(50)
    copies = [variables] * 2
    momenta = [momentum.optimizer.init(variables["params"])] * 2
    anchor = variables["params"]
    past = outer.init(anchor) if outer else None

    @jax.jit
    def step(copy, momenta, chosen):
        def cost(params):
            logits, renewed = network.apply(
                {**copy, "params": params},
                momentum.normalise(jnp.asarray(images)[chosen]),
                train=True,
                mutable=["batch_stats"],
            )
            return momentum.loss(logits, jnp.asarray(labels)[chosen]).mean(), renewed

        gradient, renewed = jax.grad(cost, has_aux=True)(copy["params"])
        change, momenta = momentum.optimizer.update(gradient, momenta, copy["params"])
        return {**renewed, "params": optax.apply_updates(copy["params"], change)}, momenta

    for number in range(3):
        for c in range(2):
            copies[c], momenta[c] = step(copies[c], momenta[c], order[c, number])
        if number == 1:
            mean = jax.tree.map(lambda a, b: (a + b) / 2, *copies)
            if outer:
                fall = jax.tree.map(jnp.subtract, anchor, mean["params"])
                change, past = outer.update(fall, past, anchor)
                mean = {**mean, "params": optax.apply_updates(anchor, change)}
            copies = [mean] * 2
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *copies)
    chex.assert_trees_all_close(trainer.finish(fitted.state), expected, rtol=1e-4, atol=1e-5)


def test_a_state_goes_through_the_host():
    network = small.Net(4)
    rule = recipe(optax.sgd(0.05), average=0.9)
    options = {"every": 2, "outer": optax.sgd(0.7, momentum=0.9)}
    trainer = training.rarely_averaged(network, None, rule, **options, devices=jax.devices()[:2])
    whole = train(trainer, network, epochs=2).state
    half = trainer.to_devices(trainer.to_host(train(trainer, network, epochs=1).state))
    again = training.fit(trainer, half, trainer.place(*small.images(50)), 2).state
    chex.assert_trees_all_equal(trainer.finish(again), trainer.finish(whole))
    logits = training.evaluate(trainer, again, trainer.place(*small.images(37, seed=1)))
    assert logits.shape == (2, 37, 3)


def test_nothing_is_communicated_between_averages():
    network = small.Net(4)
    trainer = training.rarely_averaged(network, None, recipe(optax.sgd(0.1)), every=5)
    data = trainer.place(*small.images(50))
    state = trainer.start(network.init(KEY(0), jnp.zeros((1, 8, 8, 3))), KEY(1))
    program = trainer.step.lower(state, data, trainer.shuffle(state, data)).compile().as_text()
    for word in ("all-reduce", "all-gather", "collective", "all-to-all", "send(", "recv("):
        assert word not in program


@pytest.mark.parametrize("every", [0, -1])
def test_too_few_steps_are_refused(every):
    with pytest.raises(ValueError, match="every >= 1"):
        training.rarely_averaged(small.Net(), None, recipe(optax.sgd(0.1)), every)
