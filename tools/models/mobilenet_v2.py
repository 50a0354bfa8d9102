"""MobileNetV2, with the layout and the state-dict names of torchvision.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolutions import conv_norm_activation, make_divisible
from .init import seed_parameters, settle_batch_norms

__all__ = ["MobileNetV2", "mobilenet_v2"]

# Table 2 of the paper: expansion, output channels, number of blocks, stride of the first of them.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand by 1×1, 3×3 depthwise, project by 1×1 without an activation; a shortcut where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm_activation(in_channels, wide, kernel_size=1, activation=nn.ReLU6))
        layers += [
            conv_norm_activation(wide, wide, kernel_size=3, stride=stride, groups=wide, activation=nn.ReLU6),
            nn.Conv2d(wide, out_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for ``x``."""
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 for images ``[N, 3, H, W]``, to logits ``[N, num_classes]``.

    Args:
        num_classes: number of logits.
        width_mult: factor of the number of channels of every layer.
    """

    def __init__(self, num_classes: int = 1000, width_mult: float = 1.0) -> None:
        super().__init__()
        channels = make_divisible(32 * width_mult)
        last = make_divisible(1280 * max(1.0, width_mult))
        layers: list[nn.Module] = [
            conv_norm_activation(3, channels, kernel_size=3, stride=2, activation=nn.ReLU6)
        ]
        for expansion, out, count, stride in _GROUPS:
            for index in range(count):
                out_channels = make_divisible(out * width_mult)
                block = InvertedResidual(channels, out_channels, stride if index == 0 else 1, expansion)
                layers.append(block)
                channels = out_channels
        layers.append(conv_norm_activation(channels, last, kernel_size=1, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """The logits of ``x``."""
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v2(*, num_classes: int = 1000, width_mult: float = 1.0, seed: int = 0) -> MobileNetV2:
    """MobileNetV2 in eval mode, its weights and BatchNorm statistics drawn from ``seed``."""
    return settle_batch_norms(seed_parameters(MobileNetV2(num_classes, width_mult), seed), (4, 3, 224, 224))
