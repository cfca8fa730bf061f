"""Networks as users write them, one for each way in which channels travel: the contract's table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

CLASSES = 5


def channels_norm() -> nn.Module:
    return nn.GroupNorm(num_groups=None, group_size=2)


class LeNet(nn.Module):
    """A flatten before a dense layer: the sub-networks' blocks interleave."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.tanh(nn.Conv(self.width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(2 * self.width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(3 * self.width)(x.reshape(x.shape[0], -1)))
        return nn.Dense(CLASSES)(x)


class PreActivation(nn.Module):
    """Residual sums and batch norm before the convolutions, as in a wide ResNet; dropout."""

    width: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
        for widening in (1, 2):
            y = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.Conv(widening * self.width, (1, 1), use_bias=False)(y)
            y = nn.Dropout(0.5, deterministic=not train)(y)
            x = x + nn.Conv(widening * self.width, (3, 3))(y)
        return nn.Dense(CLASSES)(nn.relu(x).mean((1, 2)))


class DenseNet(nn.Module):
    """Concatenation after concatenation, and a flatten of the whole."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3))(x)
        for _ in range(3):
            y = nn.BatchNorm(use_running_average=True)(x)
            x = jnp.concatenate([x, nn.Conv(self.width // 2, (3, 3))(nn.relu(y))], axis=-1)
        x = nn.avg_pool(x, (4, 4), (4, 4))
        return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


class UNet(nn.Module):
    """Skips by concatenation, transposed convolutions, a head at every pixel."""

    width: int

    @nn.compact
    def __call__(self, x):
        a = nn.relu(nn.Conv(self.width, (3, 3))(x))
        b = nn.relu(nn.Conv(2 * self.width, (3, 3), strides=2)(a))
        up = nn.ConvTranspose(self.width, (2, 2), strides=(2, 2))(b)
        c = nn.relu(nn.Conv(self.width, (3, 3))(jnp.concatenate([a, up], -1)))
        return nn.Conv(CLASSES, (1, 1))(c)


class MobileNet(nn.Module):
    """Inverted residuals: depthwise convolutions, with a multiplier too; relu6."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3))(x)
        y = jnp.clip(nn.Conv(3 * self.width, (1, 1))(x), 0, 6)
        y = nn.Conv(6 * self.width, (3, 3), feature_group_count=3 * self.width)(y)
        x = x + nn.Conv(self.width, (1, 1))(nn.relu6(y))
        return nn.Dense(CLASSES)(nn.hard_swish(x).mean((1, 2)))


class ResNeXt(nn.Module):
    """Groups whose number grows with the width."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3))(x)
        y = nn.Conv(self.width, (3, 3), feature_group_count=self.width // 2)(nn.relu(x))
        return nn.Dense(CLASSES)(nn.relu(x + nn.Conv(self.width, (1, 1))(y)).mean((1, 2)))


class WideGroups(nn.Module):
    """Groups whose number stays: each is K times as wide, and its blocks interleave."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(2 * self.width, (3, 3))(x))
        x = nn.relu(nn.Conv(4 * self.width, (3, 3), feature_group_count=2)(x))
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class GroupNorms(nn.Module):
    """Group norm with groups in proportion to the width, and instance norm."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(num_groups=self.width // 2)(nn.Conv(self.width, (3, 3))(x))
        x = nn.InstanceNorm()(nn.Conv(self.width, (3, 3))(nn.elu(x)))
        return nn.Dense(CLASSES)(nn.relu(x).mean((1, 2)))


class SqueezeExcite(nn.Module):
    """Channels weighted by a small network of their means."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2 * self.width, (3, 3))(x)
        s = nn.relu(nn.Dense(self.width)(x.mean((1, 2))))
        s = nn.sigmoid(nn.Dense(2 * self.width)(s))
        return nn.Dense(CLASSES)((x * s[:, None, None, :]).max((1, 2)))


class ConvNeXt(nn.Module):
    """Patches, depthwise 5×5, group norm, GELU, layer scale."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (2, 2), strides=2)(x)
        y = nn.Conv(self.width, (5, 5), feature_group_count=self.width)(x)
        y = nn.gelu(nn.Dense(4 * self.width)(channels_norm()(y)))
        y = nn.Dense(self.width)(y) * self.param("scale", nn.initializers.ones, (self.width,))
        return nn.Dense(CLASSES)((x + y).mean((1, 2)))


class EncoderBlock(nn.Module):
    """Attention whose heads grow with the width, norms within a sub-network, a gated MLP."""

    width: int
    fused: bool = False

    @nn.compact
    def __call__(self, x):
        heads, features = self.width, 4 * self.width
        y = nn.GroupNorm(num_groups=None, group_size=4, reduction_axes=-1)(x)
        if self.fused:
            qkv = nn.Dense(3 * features)(y).reshape(*y.shape[:2], 3, heads, 4)
            y = nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
            y = nn.Dense(features)(y.reshape(*y.shape[:2], features))
        else:
            mask = nn.make_causal_mask(jnp.ones(y.shape[:2]))
            attention = nn.MultiHeadDotProductAttention(
                heads, qkv_features=features, out_features=features
            )
            y = attention(y, mask=mask)
        x = x + y
        gate, value = jnp.split(nn.Dense(4 * self.width)(x), 2, axis=-1)
        return x + nn.Dense(features)(nn.silu(gate) * value)


class Transformer(nn.Module):
    """A vision transformer: patches, positions, encoder blocks."""

    width: int
    fused: bool = False

    @nn.compact
    def __call__(self, x):
        features = 4 * self.width
        x = nn.Conv(features, (4, 4), strides=4)(x).reshape(x.shape[0], -1, features)
        x = x + self.param("position", nn.initializers.normal(1.0), (1, x.shape[1], features))
        for _ in range(2):
            x = EncoderBlock(self.width, self.fused)(x)
        return nn.Dense(CLASSES)(x[:, 0])


class Embedding(nn.Module):
    """Tokens, an embedding, a 1-D convolution."""

    width: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, self.width)(tokens)
        x = nn.relu(nn.Conv(self.width, (3,))(x))
        return nn.Dense(CLASSES)(x.sum(1))


class GLU(nn.Module):
    """nn.glu: the first half of the channels gated by the second."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.glu(nn.Conv(2 * self.width, (3, 3))(x))
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class ShuffleNet(nn.Module):
    """Split, a branch, concatenation and shuffle, twice."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2 * self.width, (3, 3))(x)
        for _ in range(2):
            a, b = jnp.split(x, 2, axis=-1)
            b = nn.relu(nn.Conv(self.width, (1, 1))(b))
            b = nn.Conv(self.width, (3, 3), feature_group_count=self.width)(b)
            x = jnp.concatenate([a, b], axis=-1)
            x = x.reshape(*x.shape[:3], 2, self.width).swapaxes(-1, -2).reshape(x.shape)
        return nn.Dense(CLASSES)(nn.relu(x).mean((1, 2)))


class GroupedAfterConcat(nn.Module):
    """Grouped and depthwise convolutions after a concatenation."""

    width: int

    @nn.compact
    def __call__(self, x):
        a, b = nn.Conv(self.width, (3, 3))(x), nn.Conv(2 * self.width, (1, 1))(x)
        x = nn.relu(jnp.concatenate([a, b], -1))
        x = nn.Conv(3 * self.width, (3, 3), feature_group_count=3 * self.width // 2)(x)
        x = nn.relu(jnp.concatenate([x, a], -1))
        x = nn.Conv(4 * self.width, (3, 3), feature_group_count=4 * self.width)(x)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class ImageConcat(nn.Module):
    """The input image concatenated to features, before a convolution and before the head."""

    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Conv(self.width, (3, 3))(x))
        y = nn.relu(nn.Conv(self.width, (3, 3))(jnp.concatenate([x, y], -1)))
        y = jnp.concatenate([x, y], -1)
        return nn.Dense(CLASSES)(y.reshape(y.shape[0], -1))


class Volume(nn.Module):
    """3-D convolutions with dilation."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (2, 2, 2))(x))
        x = nn.relu(nn.Conv(self.width, (2, 2, 2), kernel_dilation=2)(x))
        return nn.Dense(CLASSES)(x.mean((1, 2, 3)))


class WeightNormed(nn.Module):
    """nn.WeightNorm on a convolution and a dense layer."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.WeightNorm(nn.Conv(self.width, (3, 3)))(x))
        x = nn.relu(nn.WeightNorm(nn.Conv(self.width, (3, 3)))(x))
        x = nn.relu(nn.WeightNorm(nn.Dense(2 * self.width))(x.mean((1, 2))))
        return nn.Dense(CLASSES)(x)


class Block(nn.Module):
    """A residual block that carries its features, for scan and remat."""

    width: int

    @nn.compact
    def __call__(self, x, _):
        y = nn.relu(channels_norm()(nn.Conv(self.width, (3, 3))(x)))
        return x + y, None


class Scanned(nn.Module):
    """Three blocks by nn.scan over stacked parameters, one by nn.remat."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3))(x)
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(self.width)(x, None)
        x, _ = nn.remat(Block)(self.width)(x, None)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class ChannelsFirst(nn.Module):
    """Another dimension order: NCHW kept by hand, and a flatten that needs no interleaving."""

    width: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.he_normal(), (self.width, 3, 3, 3))
        order = ("NCHW", "OIHW", "NCHW")
        x = x.transpose(0, 3, 1, 2)
        x = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=order
        )
        x = nn.max_pool(nn.relu(x).transpose(0, 2, 3, 1), (2, 2), (2, 2)).transpose(0, 3, 1, 2)
        return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


class PaddedShortcut(nn.Module):
    """ResNet's first kind of shortcut: strided, new channels padded with zeros."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        y = nn.Conv(2 * self.width, (3, 3), strides=2)(x)
        half = self.width // 2
        x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (half, half)))
        return nn.Dense(CLASSES)(nn.relu(x + y).mean((1, 2)))


class Branches(nn.Module):
    """Branches stacked along a new axis, and taken apart again."""

    width: int

    @nn.compact
    def __call__(self, x):
        branches = [nn.Conv(self.width, (size, size))(x) for size in (1, 3)]
        both = nn.relu(jnp.stack(branches, axis=1))
        a, b = jnp.unstack(both, axis=1)
        return nn.Dense(CLASSES)((a * nn.sigmoid(b)).mean((1, 2)))


class Frequencies(nn.Module):
    """A global filter: features weighted at every frequency, and channels tiled before the head."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3))(x)
        filters = self.param("filters", nn.initializers.normal(1.0), (self.width, 8, 5))
        spectrum = jnp.fft.rfft2(x.astype(jnp.float32).transpose(0, 3, 1, 2))
        x = jnp.fft.irfft2(spectrum * filters.astype(jnp.float32)).transpose(0, 2, 3, 1)
        x = jnp.tile(nn.relu(x).mean((1, 2)), (1, 2))
        return nn.Dense(CLASSES)(x)


class TiledGates(nn.Module):
    """Channels gated by copies of themselves: one order, met in two ways."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.glu(jnp.tile(nn.Conv(self.width, (3, 3))(x), (1, 1, 1, 2)))
        pairs = jnp.stack([x, jnp.sin(x)], -2).reshape(*x.shape[:-1], -1)
        return nn.Dense(CLASSES)(nn.glu(pairs).mean((1, 2)))


class MappedConv(nn.Module):
    """Two kernels, one for each of two feature maps, as one convolution under vmap; maxout."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3))(x)
        each = nn.vmap(
            nn.Conv, in_axes=-1, out_axes=-1, axis_size=2, variable_axes={"params": -1},
            split_rngs={"params": True},
        )  # fmt: skip
        x = each(self.width, (3, 3))(jnp.stack([x, nn.relu(x)], -1)).max(-1)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class FortranOrder(nn.Module):
    """Features flattened the other way round, and a reshape that transposes first."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        rows = jax.lax.reshape(x, (len(x), 8 * self.width, 8), (0, 1, 3, 2)).mean(-1)
        flat = jax.vmap(lambda x: x.reshape(-1, order="F"))(x)
        return nn.Dense(CLASSES)(rows) + nn.Dense(CLASSES)(flat)


class _Function(nn.Module):
    call: Callable[[Any, int], Any]
    width: int

    @nn.compact
    def __call__(self, x):
        return self.call(x, self.width)


def network_of(call: Callable[[Any, int], Any], width: int = 8) -> nn.Module:
    """Return a network that is a function of the input and the width, written with modules."""
    return _Function(call, width)


class Row(NamedTuple):
    """One network of the contract: its width (divisible by 2 and 4), and the shape of its input."""

    name: str
    build: Callable[..., nn.Module]
    width: int = 8
    shape: tuple[int, ...] = (8, 8, 3)
    tokens: bool = False

    def input(self, batch: int = 2) -> Any:
        rng = np.random.default_rng(2)
        if self.tokens:
            return jnp.asarray(rng.integers(0, 11, (batch, *self.shape)))
        return jnp.asarray(rng.normal(size=(batch, *self.shape)), jnp.float32)


ROWS = [
    Row("LeNet", LeNet),
    Row("pre-activation", PreActivation),
    Row("DenseNet", DenseNet),
    Row("U-Net", UNet),
    Row("MobileNet", MobileNet),
    Row("ResNeXt", ResNeXt),
    Row("groups that widen", WideGroups),
    Row("group norm, instance norm", GroupNorms),
    Row("squeeze and excite", SqueezeExcite),
    Row("ConvNeXt", ConvNeXt),
    Row("transformer", Transformer, width=4),
    Row("transformer, fused qkv", lambda width: Transformer(width, fused=True), width=4),
    Row("embedding, 1-D convolution", Embedding, shape=(6,), tokens=True),
    Row("GLU", GLU),
    Row("ShuffleNet", ShuffleNet, width=16),
    Row("grouped after concatenation", GroupedAfterConcat),
    Row("image concatenated", ImageConcat),
    Row("3-D convolution", Volume, shape=(4, 4, 4, 2)),
    Row("weight norm", WeightNormed),
    Row("scan and remat", Scanned),
    Row("channels first", ChannelsFirst),
    Row("padded shortcut", PaddedShortcut),
    Row("stacked branches", Branches),
    Row("gates by copies", TiledGates),
    Row("frequencies, tiled channels", Frequencies),
    Row("convolution under vmap", MappedConv),
    Row("Fortran order", FortranOrder),
]
