"""What the MobileNets are made of: convolution, BatchNorm and activation in one ``nn.Sequential``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["conv_norm_activation", "make_divisible"]


def conv_norm_activation(
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    activation: type[nn.ReLU | nn.ReLU6 | nn.Hardswish] | None,
) -> nn.Sequential:
    """A convolution that keeps height and width (divided by ``stride``), its BatchNorm, and an activation.

    The children are named 0, 1 and 2, and the activation is in place, as in torchvision.
    """
    padding = (kernel_size - 1) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
        norm(out_channels),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


def make_divisible(channels: float) -> int:
    """The multiple of 8 nearest to ``channels``, or the next one where that loses more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
