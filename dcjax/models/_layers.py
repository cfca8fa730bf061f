"""Layers and checks that the networks share."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from dcjax.models._norm import BatchNorm

Convolution = Callable[..., Array]  # with the arguments of jax.lax.conv_general_dilated


class ConvNorm(nn.Module):
    """Convolution without bias, then batch normalisation (momentum 0.9, ε = 1e-5)."""

    width: int
    kernel: int = 3
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    conv_general_dilated: Convolution | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool) -> Float[Array, "N h w c"]:
        """Return the normalised feature map."""
        x = nn.Conv(
            self.width,
            (self.kernel, self.kernel),
            strides=self.stride,
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name="conv",
        )(x)
        return BatchNorm(momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="norm")(x, train)


def check_positive(module: nn.Module, *fields: str) -> None:
    """Raise a ValueError that names the module's fields that are not integers of at least 1."""
    values = {field: getattr(module, field) for field in fields}
    whole = {field for field, value in values.items() if isinstance(value, (int, np.integer))}
    bad = [f"{k} = {v!r}" for k, v in values.items() if k not in whole or v < 1]
    if bad:
        raise ValueError(
            f"{type(module).__name__}: {', '.join(bad)}; these must be integers of at least 1"
        )


def check_images(module: nn.Module, x: Array, side: int = 1) -> None:
    """Raise a ValueError unless x has four axes: Flax would take three for a single image."""
    if x.ndim != 4 or min(x.shape[1:3]) < side:
        raise ValueError(
            f"{type(module).__name__}: expected images of shape (N, H, W, C), got {x.shape}; "
            f"H and W must be at least {side}"
        )
