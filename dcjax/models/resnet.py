"""The residual network for CIFAR."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from dcjax.models._layers import ConvNorm, Convolution, check_images, check_positive


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2: a stem, three stages of n basic blocks, global pooling, a head.

    The stages have `width`, 2 · `width` and 4 · `width` channels; the second and the third halve
    the image. Where a block changes the shape its shortcut is a projection (1×1 convolution and
    batch norm). With depth 32, 10 classes and RGB images it has 466,906 parameters at width 16 and
    7,427,914 at width 64.

    Attributes:
        depth: 6n + 2 weighted layers: 8, 14, 20, 26, 32, ….
        width: Channels of the first stage; all layers but the head scale with it.
        num_classes: Number of logits.
        dtype: The dtype of the layers below the head; parameters and statistics are float32.
        conv_general_dilated: The convolution, as in `flax.linen.Conv`: by default
            `jax.lax.conv_general_dilated`; `dcjax.native` has one that is fast on the CPU.

    Raises:
        ValueError: The depth is not 6n + 2.

    References:
        K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition,
        arXiv 1512.03385, section 4.2 (with shortcuts of its option B).

    >>> import jax
    >>> network = ResNet(depth=8, width=4, num_classes=10)
    >>> x = jnp.ones((2, 32, 32, 3))
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
    >>> jax.eval_shape(network.apply, variables, x).shape
    (2, 10)
    """

    depth: int = 32
    width: int = 16
    num_classes: int = 10
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Convolution | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check_positive(self, "width", "num_classes")
        if not isinstance(self.depth, int) or self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(f"ResNet: depth = {self.depth!r}, expected 6n + 2: 8, 14, 20, 26, …")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], train: bool = False
    ) -> Float[Array, "N classes"]:
        """Return the logits.

        Args:
            x: (N, H, W, C), of any size.
            train: Whether batch norm takes the batch's statistics, and updates the running ones
                where `batch_stats` is mutable.

        Returns:
            (N, num_classes), float32.

        Raises:
            ValueError: x has other axes.
        """
        check_images(self, x)
        chosen = {"dtype": self.dtype, "conv_general_dilated": self.conv_general_dilated}
        x = nn.relu(ConvNorm(self.width, name="stem", **chosen)(x, train))
        for stage in (1, 2, 3):
            width = self.width * 2 ** (stage - 1)
            for block in range(1, (self.depth - 2) // 6 + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = Block(width, stride, name=f"stage{stage}_block{block}", **chosen)(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


class Block(nn.Module):
    """Basic block: two 3×3 convolutions, and the input added to them before the last ReLU."""

    width: int
    stride: int
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Convolution | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool) -> Float[Array, "N h w c"]:
        """Return the feature map."""
        chosen = {"dtype": self.dtype, "conv_general_dilated": self.conv_general_dilated}
        first = ConvNorm(self.width, stride=self.stride, name="conv1", **chosen)
        second = ConvNorm(self.width, name="conv2", **chosen)
        shortcut = x
        if self.stride > 1:
            projection = ConvNorm(self.width, 1, self.stride, name="shortcut", **chosen)
            shortcut = projection(x, train)
        return nn.relu(second(nn.relu(first(x, train)), train) + shortcut)
