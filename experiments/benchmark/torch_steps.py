"""The same work in PyTorch: K residual networks in a loop, or as one vmapped ensemble."""

from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.func import (  # pyright: ignore[reportMissingImports]
    functional_call,
    grad,
    stack_module_state,
    vmap,
)

from experiments.benchmark.timing import Ways


class ResNet(nn.Module):
    """`dcjax.models.ResNet`, layer by layer."""

    def __init__(self, depth: int, width: int, classes: int = 10):
        super().__init__()
        self.stem = _conv_norm(3, width, 3, 1)
        blocks, channels = [], width
        for stage in range(3):
            for block in range((depth - 2) // 6):
                stride = 2 if stage and not block else 1
                blocks.append(_Block(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images (N, 3, H, W)."""
        x = self.blocks(torch.relu(self.stem(x)))
        return self.head(x.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = _conv_norm(before, after, 3, stride)
        self.second = _conv_norm(after, after, 3, 1)
        self.shortcut = _conv_norm(before, after, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def _conv_norm(before: int, after: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(after, momentum=0.1),
    )


def ways(batch: int, depth: int, width: int, networks: int) -> Ways:
    """Return the steps on a batch of images of 32×32×3, by their names.

    `torch_loop` trains the networks one after another, `torch_vmap` at once, `torch_global` one of
    K times the width.
    """
    x = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    return {
        "torch_loop": _loop_step([ResNet(depth, width) for _ in range(networks)], x, y),
        "torch_vmap": _vmap_step([ResNet(depth, width) for _ in range(networks)], x, y),
        "torch_global": _loop_step([ResNet(depth, width * networks)], x, y),
    }


def _loop_step(nets: list[Any], x: torch.Tensor, y: torch.Tensor) -> Callable[[], Any]:
    """Return one step of SGD with Nesterov momentum of each network, one after another."""
    nets = [net.to(memory_format=torch.channels_last) for net in nets]
    optimizers = [
        torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        for net in nets
    ]

    def step() -> None:
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()

    return step


def _vmap_step(nets: list[Any], x: torch.Tensor, y: torch.Tensor) -> Callable[[], Any]:
    """Return the same step of all networks at once, by `stack_module_state` and `vmap`."""
    params, buffers = stack_module_state(nets)
    params = {name: value.detach().requires_grad_() for name, value in params.items()}
    momenta = {name: torch.zeros_like(value) for name, value in params.items()}
    # vmap cannot update running statistics in place, so that they stay as they are.
    skeleton = nets[0]
    for module in skeleton.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    names = dict(skeleton.named_buffers())
    fixed = {name: value for name, value in buffers.items() if name in names}

    def cost(params: dict[str, Any], fixed: dict[str, Any]) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(skeleton, (params, fixed), (x,)), y)

    gradients = vmap(grad(cost))

    def step() -> None:
        found = gradients(params, fixed)
        with torch.no_grad():
            for name, value in params.items():
                gradient = found[name] + 5e-4 * value
                momenta[name].mul_(0.9).add_(gradient)
                value.sub_(0.1 * (gradient + 0.9 * momenta[name]))

    return step


def convolution_passes(batch: int, size: int, channels: int) -> Ways:
    """Return the three passes of a 3×3 convolution of square images."""
    x = torch.randn(batch, channels, size, size).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3).to(memory_format=torch.channels_last)
    y = nn.functional.conv2d(x, weight, padding=1)

    def backward(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            y, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False]
        )

    return {
        "forward": lambda: nn.functional.conv2d(x, weight, padding=1),
        "by_image": lambda: backward(True, False),
        "by_kernel": lambda: backward(False, True),
    }
