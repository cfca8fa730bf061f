"""Train a small causal language model on the characters of LICENSE, by four narrow ones.

    python -m examples.language_model

The network from scratch is trained for as many operations as the sub-networks and the fine-tuning
take together, with a learning rate of its own. The last tenth of the text is the test.
"""

import argparse
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import dcjax

FIELDS = ("width", "heads")
SETTINGS = {"subnets": 4, "subnet-steps": 400, "finetune-steps": 80, "batch-size": 16, "seed": 0}
SETTINGS |= {"subnet-rate": 4e-3, "finetune-rate": 1e-3, "scratch-rate": 8e-3}
TEXT = Path(__file__).parents[1] / "LICENSE"
LENGTH = 64


class LanguageModel(nn.Module):
    """A decoder: embeddings, causal attention, dense layers, a head of its own."""

    vocabulary: int
    width: int = 128
    heads: int = 8
    layers: int = 2

    @nn.compact
    def __call__(self, tokens):
        """Return logits (N, T, vocabulary) of the next tokens."""
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x = x + nn.Embed(LENGTH, self.width)(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


def main(argv=None):
    """Run both trainings and print the losses on the test text, in nats a character."""
    parser = argparse.ArgumentParser()
    for name, value in SETTINGS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default {value}")
    options = parser.parse_args(argv)
    characters, text = np.unique([*TEXT.read_text()], return_inverse=True)
    train, test = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    test = test[: len(test) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)

    def batch(rng, lead):
        """Return random pieces of the text, of one character more than the network sees."""
        starts = rng.integers(0, len(train) - LENGTH, (*lead, options.batch_size, 1))
        return train[starts + np.arange(LENGTH + 1)]

    def loss_of(network, params, tokens):
        logits = network.apply({"params": params}, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def run(network, params, optimizer, steps, lead=()):
        """Train one network, or several at once whose variables and batches have an axis `lead`."""
        loss, init = partial(loss_of, network), optimizer.init

        def step(params, state, tokens):
            updates, state = optimizer.update(jax.grad(loss)(params, tokens), state, params)
            return optax.apply_updates(params, updates), state

        if lead:
            step, init = jax.vmap(step), jax.vmap(init)
        step, state, rng = jax.jit(step), init(params), np.random.default_rng(options.seed)
        for _ in range(steps):
            params, state = step(params, state, batch(rng, lead))
        return params

    def report(name, network, *several):
        losses = [float(jax.jit(partial(loss_of, network))(params, test)) for params in several]
        print(f"{name}: loss {', '.join(f'{loss:.3f}' for loss in losses)}", flush=True)

    def annealed(rate, steps):
        return optax.adamw(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps))

    subnets, key = options.subnets, jax.random.key(options.seed)
    plain = LanguageModel(len(characters))
    network = dcjax.grouped(plain, subnets)
    subnet = dcjax.decompose(network, subnets, FIELDS)
    x = test[:, :-1]
    stacked = dcjax.init(network, subnets, key, x, fields=FIELDS)

    warm = optax.adamw(optax.linear_schedule(0.0, options.subnet_rate, 40))
    params = run(subnet, stacked["params"].tree, warm, options.subnet_steps, (subnets,))
    stacked = dcjax.Stacked({"params": params}, stacked.layout)
    name = f"sub-networks of width {subnet.width}, {options.subnet_steps} steps"
    report(name, subnet, *(variables["params"] for variables in stacked))

    error = dcjax.verify(network, stacked, x, fields=FIELDS).error
    params = dcjax.compose(stacked)["params"]
    report(f"composed (largest relative error of a layer {error:.1e})", network, params)
    steps = options.finetune_steps
    params = run(network, params, annealed(options.finetune_rate, steps), steps)
    report(f"fine-tuned, {steps} steps", network, params)

    def operations(network, params):
        return jax.jit(partial(loss_of, network)).lower(params, test).cost_analysis()["flops"]

    ratio = subnets * operations(subnet, stacked[0]["params"]) / operations(plain, params)
    steps = round(steps + ratio * options.subnet_steps)
    params = plain.init(key, x)["params"]
    params = run(plain, params, annealed(options.scratch_rate, steps), steps)
    report(f"from scratch, {steps} steps (sub-networks: {ratio:.2f} of a step)", plain, params)


if __name__ == "__main__":
    main()
