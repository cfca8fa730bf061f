"""Public architectures in a few lines: with layer norms, and with widths as numbers in the code."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

CLASSES = 6


class ViTBlock(nn.Module):
    width: int
    heads: int

    @nn.compact
    def __call__(self, x, mask=None):
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
        hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(hidden)


class ViT(nn.Module):
    """Vision transformer: patches, a class token, positions, pre-norm blocks."""

    width: int = 32
    heads: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (4, 4), strides=4)(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", nn.initializers.normal(), (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("position", nn.initializers.normal(), x.shape[1:])
        for _ in range(2):
            x = ViTBlock(self.width, self.heads)(x)
        return nn.Dense(CLASSES, name="head")(nn.LayerNorm()(x)[:, 0])


class ConvNeXt(nn.Module):
    """ConvNeXt: LayerNorm over the channels at each pixel, depthwise convolutions, layer scale."""

    width: int = 16

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Conv(self.width, (2, 2), strides=2)(x))
        for stage, width in enumerate((self.width, 2 * self.width)):
            if stage:
                x = nn.Conv(width, (2, 2), strides=2)(nn.LayerNorm()(x))
            y = nn.Conv(width, (5, 5), feature_group_count=width)(x)
            y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm(epsilon=1e-5)(y)))
            y = nn.Dense(width)(y)
            x = x + y * self.param(f"scale_{stage}", nn.initializers.constant(1e-6), (width,))
        return nn.Dense(CLASSES, name="head")(nn.LayerNorm()(x.mean((1, 2))))


class CausalLM(nn.Module):
    """Decoder of a language model: RMSNorm, causal attention, SwiGLU, an untied head."""

    width: int = 32
    heads: int = 8

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(13, self.width)(tokens)
        x = x + nn.Embed(tokens.shape[1], self.width)(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        for _ in range(2):
            y = nn.RMSNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, use_bias=False)(y, y, mask=mask)
            y = nn.RMSNorm()(x)
            gate = nn.silu(nn.Dense(2 * self.width, use_bias=False)(y))
            up = nn.Dense(2 * self.width, use_bias=False)(y)
            x = x + nn.Dense(self.width, use_bias=False)(gate * up)
        return nn.Dense(13, use_bias=False, name="head")(nn.RMSNorm()(x))


class Bert(nn.Module):
    """Encoder in the manner of BERT: segments, padding, LayerNorm after the sums."""

    width: int = 32
    heads: int = 8

    @nn.compact
    def __call__(self, tokens, segments=None, valid=None):
        x = nn.Embed(13, self.width)(tokens)
        x = x + nn.Embed(2, self.width)(segments)
        x = x + nn.Embed(16, self.width)(jnp.arange(tokens.shape[1]))
        x = nn.LayerNorm(epsilon=1e-12)(x)
        mask = nn.make_attention_mask(valid, valid)
        for _ in range(2):
            y = nn.MultiHeadDotProductAttention(self.heads)(x, mask=mask)
            x = nn.LayerNorm(epsilon=1e-12)(x + y)
            y = nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(x)))
            x = nn.LayerNorm(epsilon=1e-12)(x + y)
        return nn.Dense(CLASSES, name="head")(nn.tanh(nn.Dense(self.width)(x[:, 0])))


class TokenMixing(nn.Module):
    """Mixes tokens in each group of channels; with one group as in MLP-Mixer."""

    groups: int
    hidden: int

    @nn.compact
    def __call__(self, x):  # (N, T, C)
        tokens, init = x.shape[1], nn.initializers.lecun_normal(batch_axis=0)
        grouped = x.reshape(*x.shape[:2], self.groups, -1)
        a = self.param("in", init, (self.groups, tokens, self.hidden))
        b = self.param("out", init, (self.groups, self.hidden, tokens))
        y = nn.gelu(jnp.einsum("ntgc,gth->nhgc", grouped, a))
        return jnp.einsum("nhgc,ght->ntgc", y, b).reshape(x.shape)


class Mixer(nn.Module):
    """MLP-Mixer. Its token mixing is one for all channels, unless `groups` is divided."""

    width: int = 16
    groups: int = 0

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (4, 4), strides=4)(x)
        x = x.reshape(x.shape[0], -1, self.width)
        for _ in range(2):
            y = nn.LayerNorm()(x)
            if self.groups:
                x = x + TokenMixing(self.groups, 8)(y)
            else:
                y = nn.gelu(nn.Dense(8)(y.swapaxes(1, 2)))
                x = x + nn.Dense(x.shape[1])(y).swapaxes(1, 2)
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(CLASSES, name="head")(nn.LayerNorm()(x).mean(1))


class ActorCritic(nn.Module):
    """Actor and critic of PPO, as most public codes have them."""

    @nn.compact
    def __call__(self, x):
        actor = nn.tanh(nn.Dense(64, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
        actor = nn.tanh(nn.Dense(64)(actor))
        logits = nn.Dense(4, kernel_init=nn.initializers.orthogonal(0.01))(actor)
        critic = nn.tanh(nn.Dense(64)(x))
        critic = nn.tanh(nn.Dense(64)(critic))
        return logits, jnp.squeeze(nn.Dense(1)(critic), -1)


class ResidualBlock(nn.Module):
    filters: int
    strides: int = 1

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.filters, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        y = nn.Conv(self.filters, (3, 3), use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=True)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.filters, (1, 1), self.strides, name="projection")(x)
        return nn.relu(x + y)


class HardResNet(nn.Module):
    """ResNet with its widths in the code."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(16, (3, 3))(x)))
        for i, filters in enumerate((16, 16, 32)):
            x = ResidualBlock(filters, 1 + (i == 2))(x)
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


class HardViT(nn.Module):
    """Vision transformer with its widths in the code; blocks by scan and remat."""

    scanned: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (4, 4), strides=4)(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        if self.scanned:
            block = nn.scan(
                nn.remat(HardBlock),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=2,
            )
            x, _ = block()(x, None)
        else:
            for _ in range(2):
                x, _ = HardBlock()(x, None)
        return nn.Dense(CLASSES, name="head")(nn.LayerNorm()(x).mean(1))


class HardBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _: Any):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(8, qkv_features=64)(y, y)
        y = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))  # follows the input
        return x + nn.Dense(32)(y), None


class Recurrent(nn.Module):
    """A cell that is asked for its carry before any of its methods is called."""

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.LSTMCell(32))(nn.relu(nn.Dense(16)(x)))
        return nn.Dense(CLASSES, name="head")(nn.RNN(nn.GRUCell(16))(x))
