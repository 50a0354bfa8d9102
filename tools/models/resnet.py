"""ResNet-18 and ResNet-50, with the layout and the state-dict names of torchvision.

He et al., "Deep Residual Learning for Image Recognition" (2015); the bottleneck has its stride in the 3×3
convolution (ResNet v1.5). As in torchvision every block calls *one* in-place ``nn.ReLU`` two or three times:
a reused module is what many published models contain, so the models that lowbit is tried on contain it too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .init import seed_parameters

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "resnet18", "resnet50"]


def _conv3x3(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_planes, out_planes, kernel_size=3, stride=stride, padding=1, bias=False)


def _conv1x1(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_planes, out_planes, kernel_size=1, stride=stride, bias=False)


def _projection(in_planes: int, out_planes: int, stride: int) -> nn.Sequential | None:
    """The shortcut's projection, or None where the shapes agree and the shortcut is the identity."""
    if stride == 1 and in_planes == out_planes:
        return None
    return nn.Sequential(_conv1x1(in_planes, out_planes, stride), nn.BatchNorm2d(out_planes))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, ``[N, in_planes, H, W]`` → ``[N, planes, H/stride, W/stride]``."""

    expansion = 1

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_planes, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _projection(in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for ``x``."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 and a shortcut, ``[N, in_planes, H, W]`` → ``[N, 4·planes, H/stride, W/stride]``."""

    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv1x1(in_planes, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv1x1(planes, planes * self.expansion)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_planes, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for ``x``."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A residual network for images ``[N, 3, H, W]``, to logits ``[N, num_classes]``.

    Args:
        block: the kind of residual block.
        layers: number of blocks of each of the four groups.
        num_classes: number of logits.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], layers: Sequence[int], num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _group(block, 64, 64, layers[0], stride=1)
        self.layer2 = _group(block, 64 * block.expansion, 128, layers[1], stride=2)
        self.layer3 = _group(block, 128 * block.expansion, 256, layers[2], stride=2)
        self.layer4 = _group(block, 256 * block.expansion, 512, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of ``x``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _group(
    block: type[BasicBlock | Bottleneck], in_planes: int, planes: int, count: int, stride: int
) -> nn.Sequential:
    first = block(in_planes, planes, stride)
    return nn.Sequential(first, *(block(planes * block.expansion, planes) for _ in range(count - 1)))


def resnet18(*, num_classes: int = 1000, seed: int = 0) -> ResNet:
    """ResNet-18 in eval mode, its weights and BatchNorm statistics drawn from ``seed``."""
    return seed_parameters(ResNet(BasicBlock, (2, 2, 2, 2), num_classes), seed)


def resnet50(*, num_classes: int = 1000, seed: int = 0) -> ResNet:
    """ResNet-50 in eval mode, its weights and BatchNorm statistics drawn from ``seed``."""
    return seed_parameters(ResNet(Bottleneck, (3, 4, 6, 3), num_classes), seed)
