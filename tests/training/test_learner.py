import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dcjax import training
from dcjax.training._learner import learner


class Mean(nn.Module):
    """Its logit is the mean of the image, so that the loss shows what it was given."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        bias = self.param("bias", nn.initializers.zeros, (1,))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return x.mean((1, 2, 3))[:, None] + bias


def noise(key, images):
    return jax.random.bits(key, images.shape, jnp.uint8)


@pytest.mark.parametrize(
    ("network", "augment"), [(Mean(), noise), (Mean(rate=0.5), training.no_augment)]
)
def test_every_step_draws_anew_and_the_same_again(network, augment):
    recipe = training.Recipe(
        optax.sgd(0.0), batch_size=2, augment=augment, loss=lambda logits, _: logits[:, 0]
    )
    one = learner(network, recipe, lambda x, _: x)
    image = jax.random.bits(jax.random.key(3), (16, 16, 1), jnp.uint8)
    images = jnp.stack([image] * 8)  # alike: their order does not matter
    data = training.Data(images, jnp.zeros(8, jnp.int32))
    variables = network.init(jax.random.key(0), images)
    start = one.init(variables, jax.random.key(1))
    step = jax.jit(one.step)
    order = one.shuffle(start, data)

    def losses():
        return [float(step(start._replace(step=jnp.int32(n)), data, order)[1]) for n in range(4)]

    assert len(np.unique(losses())) == 4
    assert losses() == losses()
