"""Large public networks, for tables that need only their shapes."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with batch norms, beside a shortcut."""

    filters: int
    strides: int

    @nn.compact
    def __call__(self, x):
        """Return the block's features."""
        y, layers = x, (((1, 1), 1, 1), ((3, 3), self.strides, 1), ((1, 1), 1, 4))
        for size, strides, expansion in layers:
            y = nn.Conv(expansion * self.filters, size, strides, use_bias=False)(y)
            y = nn.BatchNorm(use_running_average=True)(y)
            y = nn.relu(y) if expansion == 1 else y
        if x.shape != y.shape:
            x = nn.Conv(4 * self.filters, (1, 1), self.strides, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=True)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-152."""

    width: int = 64
    stages: Sequence[int] = (3, 8, 36, 3)

    @nn.compact
    def __call__(self, x):
        """Return logits (N, 1000) of images (N, H, W, 3)."""
        x = nn.Conv(self.width, (7, 7), 2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                x = Bottleneck(self.width * 2**i, 1 + (i > 0 and j == 0))(x)
        return nn.Dense(1000)(x.mean((1, 2)))


class Block(nn.Module):
    """A transformer's block, normalised before attention and before the dense layers."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, x, mask=None):
        """Return the block's features, of the shape of x."""
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
        y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(y)


class ViT(nn.Module):
    """ViT-L/16."""

    width: int = 1024
    heads: int = 16
    layers: int = 24

    @nn.compact
    def __call__(self, x):
        """Return logits (N, 1000) of images (N, H, W, 3)."""
        x = nn.Conv(self.width, (16, 16), strides=16)(x).reshape(x.shape[0], -1, self.width)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        for _ in range(self.layers):
            x = Block(self.width, self.heads)(x)
        return nn.Dense(1000)(nn.LayerNorm()(x).mean(1))


class LanguageModel(nn.Module):
    """A causal language model."""

    width: int = 1024
    heads: int = 16
    layers: int = 24

    @nn.compact
    def __call__(self, tokens):
        """Return logits (N, T, 50257) of tokens (N, T)."""
        x = nn.Embed(50257, self.width)(tokens)
        x = x + nn.Embed(tokens.shape[1], self.width)(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            x = Block(self.width, self.heads)(x, mask)
        return nn.Dense(50257, use_bias=False)(nn.LayerNorm()(x))
