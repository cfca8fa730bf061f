"""A plain convolutional network in the manner of VGG, with batch normalisation."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from dcjax.models._layers import ConvNorm, Convolution, check_images, check_positive


class CNN(nn.Module):
    """VGG-like network: stages of 3×3 convolutions and max-pooling, a flatten, two dense layers.

    Stage i = 1, 2, … has `convolutions` of 2^(i−1) · `width` channels, each with batch norm and
    ReLU, and halves the image. The flattened features go through a hidden dense layer as wide as
    the last stage, and to the head.

    Attributes:
        width: Channels of the first stage; all layers but the head scale with it.
        num_classes: Number of logits.
        stages: Number of stages.
        convolutions: Number of convolutions in each stage.
        dtype: The dtype of the layers below the head; parameters and statistics are float32.
        conv_general_dilated: The convolution, as in `flax.linen.Conv`: by default
            `jax.lax.conv_general_dilated`; `dcjax.native` has one that is fast on the CPU.

    References:
        K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image
        recognition, arXiv 1409.1556.

    >>> import jax
    >>> network = CNN(width=4, num_classes=10)
    >>> x = jnp.ones((2, 32, 32, 3))
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), x)
    >>> jax.eval_shape(network.apply, variables, x).shape
    (2, 10)
    """

    width: int = 32
    num_classes: int = 10
    stages: int = 3
    convolutions: int = 2
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Convolution | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check_positive(self, "width", "num_classes", "stages", "convolutions")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], train: bool = False
    ) -> Float[Array, "N classes"]:
        """Return the logits.

        Args:
            x: (N, H, W, C), H and W at least 2^stages.
            train: Whether batch norm takes the batch's statistics, and updates the running ones
                where `batch_stats` is mutable.

        Returns:
            (N, num_classes), float32.

        Raises:
            ValueError: x has other axes, or the images are too small for the stages.
        """
        check_images(self, x, side=2**self.stages)  # each stage halves the image
        widths = [self.width * 2**i for i in range(self.stages)]
        chosen = {"dtype": self.dtype, "conv_general_dilated": self.conv_general_dilated}
        for stage, width in enumerate(widths, 1):
            for block in range(1, self.convolutions + 1):
                layer = ConvNorm(width, name=f"stage{stage}_block{block}", **chosen)
                x = nn.relu(layer(x, train))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        init = nn.initializers.he_normal()
        x = nn.relu(nn.Dense(widths[-1], kernel_init=init, dtype=self.dtype, name="hidden")(x))
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)
