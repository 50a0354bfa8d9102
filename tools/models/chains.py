"""Deep chains of one small block: graphs whose size is chosen, to measure how graph work grows with it.

The tensors are tiny, so that what is measured is the work on the graph and not on the numbers.
"""

from __future__ import annotations

from torch import nn

from .init import seed_parameters
from .resnet import BasicBlock

__all__ = ["conv_bn_relu_chain", "linear_relu_chain", "residual_chain"]


def conv_bn_relu_chain(n: int, *, channels: int = 4, seed: int = 0) -> nn.Sequential:
    """``n`` × (3×3 convolution with bias, BatchNorm, ReLU) on ``[N, channels, H, W]``, in eval mode."""
    blocks = (
        nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        for _ in range(n)
    )
    return seed_parameters(nn.Sequential(*blocks), seed)


def linear_relu_chain(n: int, *, features: int = 8, seed: int = 0) -> nn.Sequential:
    """``n`` × (linear with bias, ReLU) on ``[N, features]``, in eval mode."""
    blocks = (nn.Sequential(nn.Linear(features, features), nn.ReLU()) for _ in range(n))
    return seed_parameters(nn.Sequential(*blocks), seed)


def residual_chain(n: int, *, channels: int = 4, seed: int = 0) -> nn.Sequential:
    """``n`` residual blocks (see :class:`.resnet.BasicBlock`) on ``[N, channels, H, W]``, in eval mode."""
    return seed_parameters(nn.Sequential(*(BasicBlock(channels, channels) for _ in range(n))), seed)
