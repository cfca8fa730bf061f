"""Convolutional networks for images, as public codes write them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class VGG(nn.Module):
    """Widths in a list of numbers, "M" for a pooling; dense layers behind a flatten."""

    cfg: Sequence[Any] = (32, 32, "M", 64, "M")
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        for v in self.cfg:
            if v == "M":
                x = nn.max_pool(x, (2, 2), (2, 2))
            else:
                x = nn.Conv(v, (3, 3))(x)
                x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(128)(x)))
        return nn.Dense(self.num_classes, name="classifier")(x)


class BottleneckBlock(nn.Module):
    filters: int
    conv: Callable
    norm: Callable
    strides: tuple[int, int] = (1, 1)
    groups: int = 1
    expansion: int = 4

    @nn.compact
    def __call__(self, x):
        residual = x
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
        y = self.conv(self.filters, (3, 3), self.strides, feature_group_count=self.groups)(y)
        y = self.conv(self.filters * self.expansion, (1, 1))(nn.relu(self.norm()(y)))
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(
                self.filters * self.expansion, (1, 1), self.strides, name="conv_proj"
            )(residual)
            residual = self.norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    """ResNet with bottlenecks; with a cardinality, ResNeXt."""

    stage_sizes: Sequence[int] = (1, 1)
    num_filters: int = 16
    cardinality: int = 1
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        x = conv(self.num_filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, block_size in enumerate(self.stage_sizes):
            for j in range(block_size):
                x = BottleneckBlock(
                    self.num_filters * 2**i,
                    strides=(2, 2) if i > 0 and j == 0 else (1, 1),
                    groups=self.cardinality,
                    conv=conv,
                    norm=norm,
                )(x)
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


class WideResNet(nn.Module):
    """Pre-activation; the first convolution has 16 channels at every widening factor."""

    widen_factor: int = 2
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.Conv(16, (3, 3), use_bias=False)(x)
        for channels, strides in ((16 * self.widen_factor, 1), (32 * self.widen_factor, 2)):
            y = nn.relu(norm()(x))
            shortcut = nn.Conv(channels, (1, 1), strides, use_bias=False)(y)
            y = nn.Conv(channels, (3, 3), strides, use_bias=False)(y)
            y = nn.Dropout(0.3, deterministic=not train)(nn.relu(norm()(y)))
            x = shortcut + nn.Conv(channels, (3, 3), use_bias=False)(y)
        x = nn.relu(norm()(x)).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="head")(x)


class DenseNet(nn.Module):
    growth_rate: int = 16
    num_layers: Sequence[int] = (2, 1)
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=True):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.Conv(2 * self.growth_rate, (3, 3), use_bias=False)(x)
        for block, layers in enumerate(self.num_layers):
            for _ in range(layers):
                z = nn.Conv(4 * self.growth_rate, (1, 1), use_bias=False)(nn.relu(norm()(x)))
                z = nn.Conv(self.growth_rate, (3, 3), use_bias=False)(nn.relu(norm()(z)))
                x = jnp.concatenate([x, z], axis=-1)
            if block < len(self.num_layers) - 1:
                x = nn.Conv(x.shape[-1] // 2, (1, 1), use_bias=False)(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(norm()(x))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


class InceptionBlock(nn.Module):
    c_red: dict
    c_out: dict

    @nn.compact
    def __call__(self, x, train):
        def conv(features, kernel, x):
            x = nn.Conv(features, kernel, use_bias=False)(x)
            return nn.relu(nn.BatchNorm(use_running_average=not train)(x))

        x_1x1 = conv(self.c_out["1x1"], (1, 1), x)
        x_3x3 = conv(self.c_out["3x3"], (3, 3), conv(self.c_red["3x3"], (1, 1), x))
        x_5x5 = conv(self.c_out["5x5"], (5, 5), conv(self.c_red["5x5"], (1, 1), x))
        x_max = conv(self.c_out["max"], (1, 1), nn.max_pool(x, (3, 3), padding="SAME"))
        return jnp.concatenate([x_1x1, x_3x3, x_5x5, x_max], axis=-1)


class GoogLeNet(nn.Module):
    """Inception blocks with numbers for each branch; a second head in training."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        reduced = {"3x3": 16, "5x5": 8}
        x = InceptionBlock(reduced, {"1x1": 8, "3x3": 16, "5x5": 4, "max": 4})(x, train)
        aux = nn.Dense(self.num_classes, name="aux")(x.mean((1, 2)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        x = InceptionBlock(reduced, {"1x1": 12, "3x3": 24, "5x5": 8, "max": 8})(x, train)
        logits = nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))
        return (logits, aux) if train else logits


class SqueezeExcite(nn.Module):
    ratio: float = 0.25

    @nn.compact
    def __call__(self, x):
        y = x.mean((1, 2), keepdims=True)
        y = nn.swish(nn.Conv(max(1, int(x.shape[-1] * self.ratio)), (1, 1))(y))
        return x * nn.sigmoid(nn.Conv(x.shape[-1], (1, 1))(y))


class MBConv(nn.Module):
    """Inverted residual: expansion, depthwise convolution, squeeze and excite, projection."""

    features: int
    expand_ratio: int = 4
    strides: int = 1
    squeeze: bool = False
    act: Callable = nn.relu6

    @nn.compact
    def __call__(self, x, train):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        hidden = x.shape[-1] * self.expand_ratio
        y = self.act(norm()(nn.Conv(hidden, (1, 1), use_bias=False)(x)))
        y = nn.Conv(hidden, (3, 3), self.strides, feature_group_count=hidden, use_bias=False)(y)
        y = self.act(norm()(y))
        if self.squeeze:
            y = SqueezeExcite()(y)
        y = norm()(nn.Conv(self.features, (1, 1), use_bias=False)(y))
        return x + y if x.shape == y.shape else y


def make_divisible(v, divisor=8):
    return max(divisor, int(v + divisor / 2) // divisor * divisor)


class MobileNetV2(nn.Module):
    """With a multiplier of widths, rounded to multiples of 8."""

    width_mult: float = 1.0
    squeeze: bool = False
    act: Callable = nn.relu6
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.Conv(make_divisible(32 * self.width_mult), (3, 3), 2, use_bias=False)(x)
        x = self.act(norm()(x))
        for channels, strides in ((16, 1), (16, 1)):
            channels = make_divisible(channels * self.width_mult)
            x = MBConv(channels, 4, strides, self.squeeze, self.act)(x, train)
        x = self.act(norm()(nn.Conv(64, (1, 1), use_bias=False)(x))).mean((1, 2))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="classifier")(x)


class ShuffleNet(nn.Module):
    """Grouped 1×1 convolutions, whose channels are shuffled."""

    width: int = 32
    groups: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3), 2)(x))
        y = nn.relu(nn.Conv(self.width, (1, 1), feature_group_count=self.groups)(x))
        b, h, w, c = y.shape
        y = y.reshape(b, h, w, self.groups, c // self.groups).swapaxes(3, 4).reshape(b, h, w, c)
        y = nn.Conv(self.width, (3, 3), feature_group_count=self.width)(y)
        y = nn.Conv(self.width, (1, 1), feature_group_count=self.groups)(y)
        return nn.Dense(10)(nn.relu(x + y).mean((1, 2)))


class DropPath(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x, deterministic=True):
        if deterministic or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0], 1, 1, 1))
        return x * mask / keep


class ConvNeXtBlock(nn.Module):
    dim: int
    drop_path: float = 0.1
    layer_scale_init_value: float = 1e-6

    @nn.compact
    def __call__(self, x, train):
        y = nn.Conv(self.dim, (7, 7), feature_group_count=self.dim, name="dwconv")(x)
        y = nn.LayerNorm(epsilon=1e-6)(y)
        y = nn.Dense(self.dim)(nn.gelu(nn.Dense(4 * self.dim)(y)))
        init = nn.initializers.constant(self.layer_scale_init_value)
        y = self.param("gamma", init, (self.dim,)) * y
        return x + DropPath(self.drop_path)(y, deterministic=not train)


class ConvNeXt(nn.Module):
    depths: Sequence[int] = (1, 1)
    dims: Sequence[int] = (32, 64)
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.LayerNorm(epsilon=1e-6)(nn.Conv(self.dims[0], (4, 4), strides=4)(x))
        for i, (depth, dim) in enumerate(zip(self.depths, self.dims, strict=True)):
            if i:
                x = nn.Conv(dim, (2, 2), strides=2)(nn.LayerNorm(epsilon=1e-6)(x))
            for _ in range(depth):
                x = ConvNeXtBlock(dim)(x, train)
        x = nn.LayerNorm(epsilon=1e-6)(x.mean((1, 2)))
        return nn.Dense(self.num_classes, name="head")(x)


class UNet(nn.Module):
    """Encoder and decoder with skip connections; a class for each pixel."""

    features: Sequence[int] = (16, 32)
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train=False):
        def double_conv(x, features):
            for _ in range(2):
                x = nn.Conv(features, (3, 3), use_bias=False)(x)
                x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            return x

        skips = []
        for features in self.features[:-1]:
            x = double_conv(x, features)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = double_conv(x, self.features[-1])
        for features, skip in zip(self.features[-2::-1], skips[::-1], strict=True):
            x = nn.ConvTranspose(features, (2, 2), strides=(2, 2))(x)
            x = double_conv(jnp.concatenate([skip, x], axis=-1), features)
        return nn.Conv(self.num_classes, (1, 1))(x)


class DeepLab(nn.Module):
    """Atrous pyramid with pooling of the image; bilinear resizing, also of the logits."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x):
        size = x.shape[1:3]
        low = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=2)(low))
        branches = [nn.relu(nn.Conv(32, (1, 1))(x))]
        branches += [nn.relu(nn.Conv(32, (3, 3), kernel_dilation=rate)(x)) for rate in (2, 3)]
        pooled = nn.relu(nn.Conv(32, (1, 1))(x.mean((1, 2), keepdims=True)))
        branches.append(jax.image.resize(pooled, branches[0].shape, "bilinear"))
        x = nn.relu(nn.Conv(32, (1, 1))(jnp.concatenate(branches, -1)))
        x = jax.image.resize(x, (*low.shape[:3], x.shape[-1]), "bilinear")
        x = nn.relu(nn.Conv(32, (3, 3))(jnp.concatenate([x, nn.Conv(16, (1, 1))(low)], -1)))
        x = nn.Conv(self.num_classes, (1, 1), name="head")(x)
        return jax.image.resize(x, (x.shape[0], *size, self.num_classes), "bilinear")


class EDSR(nn.Module):
    """Super-resolution: residual blocks without norms, and a pixel shuffle of the results."""

    n_feats: int = 32
    scale: int = 2

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        head = y = nn.Conv(self.n_feats, (3, 3))(x)
        for _ in range(2):
            y = y + 0.1 * nn.Conv(self.n_feats, (3, 3))(nn.relu(nn.Conv(self.n_feats, (3, 3))(y)))
        y = nn.Conv(c * self.scale**2, (3, 3))(head + nn.Conv(self.n_feats, (3, 3))(y))
        y = y.reshape(b, h, w, self.scale, self.scale, c).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(b, h * self.scale, w * self.scale, c)
