"""Transformers for images, text and other inputs, as public codes write them."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class EncoderBlock(nn.Module):
    num_heads: int
    mlp_dim: int
    dropout_rate: float = 0.1

    @nn.compact
    def __call__(self, x, deterministic=True):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(
            self.num_heads, dropout_rate=self.dropout_rate, deterministic=deterministic
        )(y, y)
        x = x + nn.Dropout(self.dropout_rate, deterministic=deterministic)(y)
        y = nn.gelu(nn.Dense(self.mlp_dim)(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


class ViT(nn.Module):
    """Patches by a convolution, a class token, learned positions."""

    patch: int = 4
    hidden_size: int = 32
    num_heads: int = 4
    mlp_dim: int = 64
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.hidden_size, (self.patch,) * 2, self.patch, padding="VALID")(x)
        n, h, w, c = x.shape
        x = x.reshape(n, h * w, c)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, c))
        x = jnp.concatenate([jnp.tile(cls, [n, 1, 1]), x], axis=1)
        init = nn.initializers.normal(0.02)
        x = x + self.param("pos_embedding", init, (1, x.shape[1], c))
        for _ in range(2):
            x = EncoderBlock(self.num_heads, self.mlp_dim)(x, deterministic=not train)
        return nn.Dense(self.num_classes, name="head")(nn.LayerNorm()(x)[:, 0])


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias for each relative position and head."""

    dim: int
    heads: int
    window: int

    @nn.compact
    def __call__(self, x, mask=None):
        n, t, c = x.shape
        qkv = nn.Dense(3 * self.dim)(x).reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        attention = (q * (c // self.heads) ** -0.5) @ k.swapaxes(-2, -1)
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.truncated_normal(0.02),
            ((2 * self.window - 1) ** 2, self.heads),
        )
        grid = np.stack(np.meshgrid(*2 * [np.arange(self.window)], indexing="ij")).reshape(2, -1)
        relative = (grid[:, :, None] - grid[:, None]) + self.window - 1
        index = relative[0] * (2 * self.window - 1) + relative[1]
        attention = attention + table[index.reshape(-1)].reshape(t, t, -1).transpose(2, 0, 1)
        if mask is not None:
            windows = mask.shape[0]
            attention = attention.reshape(n // windows, windows, self.heads, t, t)
            attention = (attention + mask[None, :, None]).reshape(n, self.heads, t, t)
        x = (nn.softmax(attention) @ v).swapaxes(1, 2).reshape(n, t, c)
        return nn.Dense(self.dim)(x)


class SwinBlock(nn.Module):
    dim: int
    heads: int
    window: int
    shift: int

    @nn.compact
    def __call__(self, x):
        n, h, w, c = x.shape
        size = self.window

        def windows(x):
            x = x.reshape(-1, h // size, size, w // size, size, x.shape[-1])
            return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size, x.shape[-1])

        y, mask = nn.LayerNorm()(x), None
        if self.shift:
            y = jnp.roll(y, (-self.shift, -self.shift), axis=(1, 2))
            region, count = np.zeros((1, h, w, 1)), 0
            cuts = slice(0, -size), slice(-size, -self.shift), slice(-self.shift, None)
            for rows in cuts:
                for columns in cuts:
                    region[:, rows, columns] = count
                    count += 1
            region = windows(region)[..., 0]
            mask = jnp.where(region[:, None] == region[:, :, None], 0.0, -100.0)
        y = WindowAttention(self.dim, self.heads, size)(windows(y), mask)
        y = y.reshape(n, h // size, w // size, size, size, c).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(n, h, w, c)
        if self.shift:
            y = jnp.roll(y, (self.shift, self.shift), axis=(1, 2))
        x = x + y
        return x + nn.Dense(c)(nn.gelu(nn.Dense(4 * c)(nn.LayerNorm()(x))))


class Swin(nn.Module):
    """Shifted windows; four pixels are merged, normalised before (version 1) or behind (2)."""

    embed_dim: int = 32
    depths: Sequence[int] = (2, 1)
    num_heads: Sequence[int] = (8, 16)
    window: int = 4
    version: int = 1
    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Conv(self.embed_dim, (2, 2), strides=2)(x))
        for i, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            dim = self.embed_dim * 2**i
            for j in range(depth):
                shift = self.window // 2 if j % 2 and x.shape[1] > self.window else 0
                x = SwinBlock(dim, heads, self.window, shift)(x)
            if i < len(self.depths) - 1:
                quarters = [x[:, r::2, c::2] for c in (0, 1) for r in (0, 1)]
                x = jnp.concatenate(quarters, -1)
                x = nn.LayerNorm()(x) if self.version == 1 else x
                x = nn.Dense(2 * dim, use_bias=False)(x)
                x = x if self.version == 1 else nn.LayerNorm()(x)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x).mean((1, 2)))


class MlpBlock(nn.Module):
    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.mlp_dim)(x)))


class MlpMixer(nn.Module):
    """One kernel mixes the tokens of all channels; with groups, one the tokens of each group."""

    hidden_dim: int = 32
    groups: int = 0
    tokens_mlp_dim: int = 8
    channels_mlp_dim: int = 64
    num_classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.hidden_dim, (4, 4), strides=4, name="stem")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for _ in range(2):
            y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
            if self.groups:
                mix = nn.vmap(
                    MlpBlock,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    in_axes=1,
                    out_axes=1,
                )
                y = y.reshape(y.shape[0], self.groups, -1, y.shape[-1])
                y = mix(self.tokens_mlp_dim)(y).reshape(x.swapaxes(1, 2).shape)
            else:
                y = MlpBlock(self.tokens_mlp_dim)(y)
            x = x + jnp.swapaxes(y, 1, 2)
            x = x + MlpBlock(self.channels_mlp_dim)(nn.LayerNorm()(x))
        return nn.Dense(self.num_classes, name="head")(nn.LayerNorm()(x).mean(1))


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    block_size: int = 16
    vocab_size: int = 17
    num_layers: int = 2
    num_heads: int = 4
    num_embeds: int = 32
    tied: bool = True


class CausalSelfAttention(nn.Module):
    config: GPTConfig

    @nn.compact
    def __call__(self, x, mask):
        b, t, c = x.shape
        head_dim = c // self.config.num_heads
        qkv = nn.Dense(3 * c, name="c_attn")(x)
        qkv = qkv.reshape(b, t, 3 * self.config.num_heads, head_dim)
        q, k, v = jnp.array_split(qkv, 3, axis=2)
        attn = jnp.einsum("...qhd,...khd->...hqk", q, k) / jnp.sqrt(head_dim)
        attn = jnp.where(mask, attn, jnp.finfo(attn.dtype).min)
        attn = jax.nn.softmax(attn)
        x = jnp.einsum("...hqk,...khd->...qhd", attn, v).reshape(b, t, c)
        return nn.Dense(c, name="c_proj")(x)


class GPT(nn.Module):
    """GPT-2 with its sizes in a configuration; the head is the embedding's table, if tied."""

    config: GPTConfig = GPTConfig()

    @nn.compact
    def __call__(self, idx):
        _, t = idx.shape
        c = self.config
        wte = nn.Embed(c.vocab_size, c.num_embeds, name="wte")
        x = wte(idx) + nn.Embed(c.block_size, c.num_embeds, name="wpe")(jnp.arange(t))
        mask = jnp.tril(jnp.ones((t, t), bool))[None, None]
        for _ in range(c.num_layers):
            x = x + CausalSelfAttention(c)(nn.LayerNorm(epsilon=1e-5)(x), mask)
            y = nn.Dense(4 * c.num_embeds)(nn.LayerNorm(epsilon=1e-5)(x))
            x = x + nn.Dense(c.num_embeds)(nn.gelu(y, approximate=True))
        x = nn.LayerNorm(epsilon=1e-5, name="ln_f")(x)
        return wte.attend(x) if c.tied else nn.Dense(c.vocab_size, use_bias=False)(x)


class NarrowGPT(GPT):
    """GPT with a method that narrows its configuration."""

    def narrow(self, subnets):
        config, width = self.config, self.config.num_embeds // subnets
        heads = config.num_heads // subnets
        return NarrowGPT(dataclasses.replace(config, num_embeds=width, num_heads=heads))


class OwnRMSNorm(nn.Module):
    """RMSNorm as most codes of language models write it."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return scale * (x * jax.lax.rsqrt(variance + self.epsilon))


def apply_rotary(x, theta=10000.0):
    """Rotate pairs of each head's entries by their position."""
    d = x.shape[-1]
    frequencies = 1.0 / theta ** (jnp.arange(0, d, 2) / d)
    angles = jnp.arange(x.shape[1])[:, None] * frequencies
    sin, cos = jnp.sin(angles)[None, :, None], jnp.cos(angles)[None, :, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class LLaMA(nn.Module):
    """RMSNorm, rotary positions, queries that share keys and values in groups, SwiGLU."""

    dim: int = 64
    n_heads: int = 16
    n_kv_heads: int = 8
    ffn_dim: int = 96
    vocab_size: int = 17
    norm: Callable = nn.RMSNorm

    @nn.compact
    def __call__(self, tokens):
        head_dim = self.dim // self.n_heads
        x = nn.Embed(self.vocab_size, self.dim)(tokens)
        b, t, _ = x.shape
        mask = jnp.tril(jnp.ones((t, t), bool))
        for _ in range(2):
            y = self.norm()(x)
            q = nn.Dense(self.n_heads * head_dim, use_bias=False)(y)
            k = nn.Dense(self.n_kv_heads * head_dim, use_bias=False)(y)
            v = nn.Dense(self.n_kv_heads * head_dim, use_bias=False)(y)
            q = apply_rotary(q.reshape(b, t, self.n_heads, head_dim))
            k = apply_rotary(k.reshape(b, t, self.n_kv_heads, head_dim))
            v = v.reshape(b, t, self.n_kv_heads, head_dim)
            repeats = self.n_heads // self.n_kv_heads
            k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / head_dim**0.5
            scores = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
            y = jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(b, t, -1)
            x = x + nn.Dense(self.dim, use_bias=False)(y)
            y = self.norm()(x)
            gate = nn.silu(nn.Dense(self.ffn_dim, use_bias=False)(y))
            y = gate * nn.Dense(self.ffn_dim, use_bias=False)(y)
            x = x + nn.Dense(self.dim, use_bias=False)(y)
        return nn.Dense(self.vocab_size, use_bias=False, name="output")(self.norm()(x))


class BERT(nn.Module):
    """Segments, padding, norms after the sums, a pooler."""

    hidden_size: int = 32
    num_heads: int = 8
    intermediate_size: int = 64
    vocab_size: int = 17

    @nn.compact
    def __call__(self, inputs, deterministic=True):
        ids, valid = inputs["input_ids"], inputs["attention_mask"]
        x = nn.Embed(self.vocab_size, self.hidden_size, name="word")(ids)
        x = x + nn.Embed(16, self.hidden_size, name="position")(jnp.arange(ids.shape[1])[None])
        x = x + nn.Embed(2, self.hidden_size, name="type")(inputs["token_type_ids"])
        x = nn.LayerNorm(epsilon=1e-12)(x)
        mask = nn.make_attention_mask(valid, valid)
        for _ in range(2):
            attend = nn.MultiHeadDotProductAttention(self.num_heads, deterministic=deterministic)
            y = attend(x, mask=mask)
            x = nn.LayerNorm(epsilon=1e-12)(x + y)
            y = nn.gelu(nn.Dense(self.intermediate_size)(x), approximate=False)
            y = nn.Dropout(0.1, deterministic=deterministic)(nn.Dense(self.hidden_size)(y))
            x = nn.LayerNorm(epsilon=1e-12)(x + y)
        pooled = nn.tanh(nn.Dense(self.hidden_size, name="pooler")(x[:, 0]))
        return nn.Dense(2, name="classifier")(pooled)


class T5(nn.Module):
    """Encoder and decoder; a bias for each distance and head is added to the scores."""

    d_model: int = 32
    num_heads: int = 8
    d_ff: int = 64
    vocab_size: int = 17

    @nn.compact
    def __call__(self, batch):
        embed = nn.Embed(self.vocab_size, self.d_model, name="shared")

        def attend(q, kv, mask=None, bias=None):
            head_dim = self.d_model // self.num_heads
            heads = (self.num_heads, head_dim)
            q = nn.DenseGeneral(heads, use_bias=False)(q)
            k = nn.DenseGeneral(heads, use_bias=False)(kv)
            v = nn.DenseGeneral(heads, use_bias=False)(kv)
            y = nn.dot_product_attention(q, k, v, bias=bias, mask=mask)
            return nn.DenseGeneral(self.d_model, axis=(-2, -1), use_bias=False)(y)

        def relative_bias(t, name):
            distance = jnp.clip(jnp.arange(t)[None] - jnp.arange(t)[:, None], -4, 4) + 4
            return nn.Embed(9, self.num_heads, name=name)(distance).transpose(2, 0, 1)[None]

        def feed_forward(x):
            y = nn.RMSNorm()(x)
            y = nn.gelu(nn.Dense(self.d_ff, use_bias=False)(y)) * nn.Dense(self.d_ff)(y)
            return x + nn.Dense(self.d_model, use_bias=False)(y)

        source, target = batch["inputs"], batch["targets"]
        x = embed(source)
        y = nn.RMSNorm()(x)
        x = feed_forward(x + attend(y, y, bias=relative_bias(source.shape[1], "encoder_bias")))
        encoded = nn.RMSNorm()(x)
        x = embed(jnp.pad(target, ((0, 0), (1, 0)))[:, :-1])
        y = nn.RMSNorm()(x)
        bias = relative_bias(target.shape[1], "decoder_bias")
        x = x + attend(y, y, nn.make_causal_mask(target), bias)
        x = feed_forward(x + attend(nn.RMSNorm()(x), encoded))
        return nn.Dense(self.vocab_size, use_bias=False, name="lm_head")(nn.RMSNorm()(x))


class Perceiver(nn.Module):
    """An array of latents attends to the pixels, then to itself."""

    latents: int = 6
    width: int = 32
    heads: int = 4

    @nn.compact
    def __call__(self, x):
        n, h, w, _ = x.shape
        grid = jnp.stack(jnp.meshgrid(jnp.linspace(-1, 1, h), jnp.linspace(-1, 1, w)), -1)
        x = jnp.concatenate([x, jnp.broadcast_to(grid, (n, h, w, 2))], -1).reshape(n, h * w, -1)
        x = nn.LayerNorm()(nn.Dense(self.width)(x))
        z = self.param("latents", nn.initializers.normal(0.02), (self.latents, self.width))
        z = jnp.broadcast_to(z, (n, *z.shape))
        for _ in range(2):
            attend = nn.MultiHeadDotProductAttention(self.heads)
            z = z + attend(nn.LayerNorm()(z), x)
            z = EncoderBlock(self.heads, 2 * self.width)(z)
        return nn.Dense(10)(nn.LayerNorm()(z).mean(1))


class MoE(nn.Module):
    """Tokens go to the two best of several experts; with groups, those of each group do."""

    width: int = 32
    experts: int = 4
    groups: int = 0

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(17, self.width)(tokens)
        groups = self.groups or 1
        shape = (groups, self.experts) if self.groups else self.experts
        y = nn.LayerNorm()(x)
        gates = nn.softmax(nn.DenseGeneral(shape, name="router")(y))
        best, index = jax.lax.top_k(gates, 2)
        gates = (best[..., None] * jax.nn.one_hot(index, self.experts)).sum(-2)
        gates = gates.reshape(*x.shape[:2], groups, self.experts)
        y = y.reshape(*x.shape[:2], groups, -1)
        init, d = nn.initializers.lecun_normal(batch_axis=(0, 1)), y.shape[-1]
        up = self.param("up", init, (groups, self.experts, d, 2 * d))
        down = self.param("down", init, (groups, self.experts, 2 * d, d))
        y = nn.gelu(jnp.einsum("btgd,gedh->btgeh", y, up))
        y = jnp.einsum("btge,btgeh,gehd->btgd", gates, y, down).reshape(x.shape)
        return nn.Dense(17, name="lm_head")(nn.LayerNorm()(x + y))


class DiT(nn.Module):
    """Diffusion transformer: shift, scale and gate of each block from time and class."""

    hidden_size: int = 32
    num_heads: int = 4

    @nn.compact
    def __call__(self, batch):
        x, t, label = batch["x"], batch["t"], batch["label"]
        n, h, w, c = x.shape
        x = nn.Conv(self.hidden_size, (4, 4), strides=4)(x).reshape(n, -1, self.hidden_size)
        x = x + self.param("pos", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(16) / 16)
        angles = t[:, None] * frequencies
        time = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        time = nn.Dense(self.hidden_size)(nn.silu(nn.Dense(self.hidden_size)(time)))
        condition = nn.silu(time + nn.Embed(10, self.hidden_size)(label))[:, None]

        def modulated(x, shift, scale):
            norm = nn.LayerNorm(use_scale=False, use_bias=False, epsilon=1e-6)
            return norm(x) * (1 + scale) + shift

        for _ in range(2):
            parts = jnp.split(nn.Dense(6 * self.hidden_size)(condition), 6, axis=-1)
            y = modulated(x, parts[0], parts[1])
            x = x + parts[2] * nn.MultiHeadDotProductAttention(self.num_heads)(y)
            y = modulated(x, parts[3], parts[4])
            y = nn.gelu(nn.Dense(4 * self.hidden_size)(y))
            x = x + parts[5] * nn.Dense(self.hidden_size)(y)
        shift, scale = jnp.split(nn.Dense(2 * self.hidden_size)(condition), 2, axis=-1)
        x = nn.Dense(4 * 4 * c, name="final")(modulated(x, shift, scale))
        x = x.reshape(n, h // 4, w // 4, 4, 4, c).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(n, h, w, c)


class CLIP(nn.Module):
    """Two towers, whose embeddings are projected to the same size; similarities, or embeddings."""

    width: int = 32
    heads: int = 4
    embeddings: bool = False

    @nn.compact
    def __call__(self, batch):
        image = nn.Conv(self.width, (4, 4), strides=4)(batch["image"])
        image = image.reshape(image.shape[0], -1, self.width)
        image = EncoderBlock(self.heads, 2 * self.width)(image).mean(1)
        text = nn.Embed(17, self.width)(batch["text"])
        text = EncoderBlock(self.heads, 2 * self.width)(text)[:, -1]
        image = nn.Dense(8, use_bias=False, name="image_projection")(nn.LayerNorm()(image))
        text = nn.Dense(8, use_bias=False, name="text_projection")(nn.LayerNorm()(text))
        if self.embeddings:
            return image, text
        image = image / jnp.linalg.norm(image, axis=-1, keepdims=True)
        text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
        scale = self.param("logit_scale", nn.initializers.constant(2.659), ())
        return jnp.exp(scale) * image @ text.T
