"""MobileNetV3-small, with the layout and the state-dict names of torchvision, and one of its kind for digits.

Howard et al., "Searching for MobileNetV3" (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import attrs
import torch
from torch import Tensor, nn

from .convolutions import conv_norm_activation, make_divisible
from .init import seed_parameters, settle_batch_norms

__all__ = ["MobileNetV3", "digits_mobilenet_v3", "mobilenet_v3_small"]


@attrs.frozen
class Block:
    """One row of the paper's tables.

    Args:
        kernel: height and width of the depthwise convolution.
        wide: channels between expansion and projection.
        out: channels that come out.
        squeeze: whether the block has squeeze-and-excitation.
        activation: ``nn.ReLU`` or ``nn.Hardswish``.
        stride: of the depthwise convolution.
    """

    kernel: int
    wide: int
    out: int
    squeeze: bool
    activation: type[nn.ReLU | nn.Hardswish]
    stride: int


_SMALL = (
    Block(3, 16, 16, True, nn.ReLU, 2),
    Block(3, 72, 24, False, nn.ReLU, 2),
    Block(3, 88, 24, False, nn.ReLU, 1),
    Block(5, 96, 40, True, nn.Hardswish, 2),
    Block(5, 240, 40, True, nn.Hardswish, 1),
    Block(5, 240, 40, True, nn.Hardswish, 1),
    Block(5, 120, 48, True, nn.Hardswish, 1),
    Block(5, 144, 48, True, nn.Hardswish, 1),
    Block(5, 288, 96, True, nn.Hardswish, 2),
    Block(5, 576, 96, True, nn.Hardswish, 1),
    Block(5, 576, 96, True, nn.Hardswish, 1),
)

_DIGITS = (
    Block(3, 16, 16, True, nn.ReLU, 1),
    Block(3, 64, 24, False, nn.ReLU, 2),
    Block(3, 72, 24, False, nn.ReLU, 1),
    Block(5, 96, 40, True, nn.Hardswish, 2),
    Block(5, 160, 40, True, nn.Hardswish, 1),
)


class SqueezeExcitation(nn.Module):
    """Scales each channel of ``[N, channels, H, W]`` by a factor in [0, 1] that the whole image decides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels // 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """``x``, its channels scaled."""
        scale = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(scale)) * x


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze and excite, project without an activation; a shortcut where shapes agree."""

    def __init__(self, in_channels: int, row: Block, norm: partial[nn.BatchNorm2d]) -> None:
        super().__init__()
        conv = partial(conv_norm_activation, norm=norm)
        layers: list[nn.Module] = []
        if row.wide != in_channels:
            layers.append(conv(in_channels, row.wide, kernel_size=1, activation=row.activation))
        layers.append(
            conv(
                row.wide,
                row.wide,
                kernel_size=row.kernel,
                stride=row.stride,
                groups=row.wide,
                activation=row.activation,
            )
        )
        if row.squeeze:
            layers.append(SqueezeExcitation(row.wide))
        layers.append(conv(row.wide, row.out, kernel_size=1, activation=None))
        self.block = nn.Sequential(*layers)
        self.use_res_connect = row.stride == 1 and in_channels == row.out

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for ``x``."""
        return self.block(x) + x if self.use_res_connect else self.block(x)


class MobileNetV3(nn.Module):
    """A MobileNetV3 for images ``[N, in_channels, H, W]``, to logits ``[N, num_classes]``.

    BatchNorm has torchvision's eps of 0.001 and momentum of 0.01, which are not PyTorch's defaults.

    Args:
        blocks: one row a block.
        in_channels: 3 for colour and 1 for grey images.
        stem_stride: stride of the first convolution.
        hidden: width of the hidden layer of the classifier.
        num_classes: number of logits.
    """

    def __init__(
        self, blocks: Sequence[Block], *, in_channels: int, stem_stride: int, hidden: int, num_classes: int
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
        conv = partial(conv_norm_activation, norm=norm, activation=nn.Hardswish)
        channels = 16
        layers: list[nn.Module] = [conv(in_channels, channels, kernel_size=3, stride=stem_stride)]
        for row in blocks:
            layers.append(InvertedResidual(channels, row, norm))
            channels = row.out
        layers.append(conv(channels, 6 * channels, kernel_size=1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden),
            nn.Hardswish(inplace=True),
            nn.Dropout(0.2, inplace=True),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The logits of ``x``."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def mobilenet_v3_small(*, num_classes: int = 1000, seed: int = 0) -> MobileNetV3:
    """MobileNetV3-small in eval mode, its weights and BatchNorm statistics drawn from ``seed``."""
    model = MobileNetV3(_SMALL, in_channels=3, stem_stride=2, hidden=1024, num_classes=num_classes)
    return settle_batch_norms(seed_parameters(model, seed), (4, 3, 224, 224))


def digits_mobilenet_v3(*, seed: int = 0) -> MobileNetV3:
    """An untrained MobileNetV3 of five blocks for grey images ``[N, 1, 8, 8]``, in eval mode."""
    model = MobileNetV3(_DIGITS, in_channels=1, stem_stride=1, hidden=128, num_classes=10)
    return settle_batch_norms(seed_parameters(model, seed), (64, 1, 8, 8))
