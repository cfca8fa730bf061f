"""Train a small vision transformer on scikit-learn's digits, by four narrow ones.

    python -m examples.vit

The network from scratch is trained for as many operations as the sub-networks and the fine-tuning
take together, with a learning rate of its own.
"""

import argparse

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import dcjax
from dcjax import training

FIELDS = ("width", "heads")
SETTINGS = {"subnets": 4, "subnet-epochs": 24, "finetune-epochs": 6, "batch-size": 32, "seed": 0}
SETTINGS |= {"subnet-rate": 4e-3, "finetune-rate": 2e-3, "scratch-rate": 8e-3, "train-size": 1437}


class ViT(nn.Module):
    """A vision transformer of patches of 2×2 pixels."""

    width: int = 64
    heads: int = 8
    layers: int = 3

    @nn.compact
    def __call__(self, x):
        """Return logits (N, 10) of images (N, 8, 8, 1)."""
        x = nn.Conv(self.width, (2, 2), strides=2)(x).reshape(x.shape[0], -1, self.width)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def main(argv=None):
    """Run both trainings and print the loss and the accuracy on the test images."""
    parser = argparse.ArgumentParser()
    for name, value in SETTINGS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default {value}")
    options = parser.parse_args(argv)

    digits = load_digits()
    order = np.random.default_rng(options.seed).permutation(len(digits.target))
    images = digits.images[order, :, :, None].astype(np.uint8)
    train = images[: options.train_size], digits.target[order][: options.train_size]
    test = images[1437:], digits.target[order][1437:]
    steps = training.steps_per_epoch(len(train[0]), options.batch_size)
    key = jax.random.key(options.seed)

    def run(trainer, variables, epochs):
        """Train; print the test loss and accuracy, and return the last variables."""
        state = trainer.start(variables, key)
        state = training.fit(trainer, state, trainer.place(*train), epochs).state
        report(trainer, state)
        return trainer.finish(state)

    def report(trainer, state):
        logits = training.evaluate(trainer, state, trainer.place(*test))
        for each in logits if logits.ndim == 3 else [logits]:
            loss = optax.softmax_cross_entropy_with_integer_labels(each, test[1]).mean()
            print(f"  loss {loss:.3f}, accuracy {(each.argmax(-1) == test[1]).mean():.1%}")

    def recipe(rate):
        return training.Recipe(
            optax.adamw(rate, weight_decay=0.05),
            batch_size=options.batch_size,
            normalise=lambda x: x / 8.0 - 1,
            train_kwargs={},
        )

    def annealed(rate, epochs):
        warmup = min(steps, steps * epochs // 10)
        return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps * epochs)

    whole_image = dcjax.samples.replicate(options.subnets)
    network = dcjax.grouped(ViT(), options.subnets)
    subnet = dcjax.decompose(network, options.subnets, FIELDS)
    x = images[: options.batch_size] / 8.0 - 1
    stacked = dcjax.init(network, options.subnets, key, x, fields=FIELDS)

    print(f"sub-networks of width {subnet.width}, {options.subnet_epochs} epochs")
    warm = optax.linear_schedule(0.0, options.subnet_rate, steps)
    trainer = training.side_by_side(subnet, whole_image, recipe(warm), options.subnets)
    stacked = run(trainer, stacked, options.subnet_epochs)

    error = dcjax.verify(network, stacked, x, fields=FIELDS).error
    print(f"composed (largest relative error of a layer {error:.1e})")
    variables = dcjax.compose(stacked)
    fine = recipe(annealed(options.finetune_rate, options.finetune_epochs))
    trainer = training.data_parallel(network, whole_image, fine)
    report(trainer, trainer.start(variables, key))

    print(f"fine-tuned, {options.finetune_epochs} epochs")
    run(trainer, variables, options.finetune_epochs)

    def operations(network, variables):
        return jax.jit(network.apply).lower(variables, x).cost_analysis()["flops"]

    ratio = options.subnets * operations(subnet, stacked[0]) / operations(network, variables)
    epochs = round(options.finetune_epochs + ratio * options.subnet_epochs)
    print(f"from scratch, {epochs} epochs (sub-networks take {ratio:.2f} of its operations)")
    scratch = recipe(annealed(options.scratch_rate, epochs))
    trainer = training.data_parallel(ViT(), whole_image, scratch)
    run(trainer, ViT().init(key, x), epochs)


if __name__ == "__main__":
    main()
