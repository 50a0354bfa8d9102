"""A small DenseNet for the 8×8 images of scikit-learn's digits, with the state-dict names of torchvision.

Huang et al., "Densely Connected Convolutional Networks" (2016). BatchNorm and ReLU come before their
convolution, and what a layer reads is the concatenation of everything before it in its block: a BatchNorm
here has no convolution to be folded into, and one tensor has many users.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .init import seed_parameters

__all__ = ["DenseNet", "digits_densenet"]


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1×1 and BatchNorm, ReLU, 3×3: ``growth`` new channels from all those before."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, kernel_size=3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The new channels, from ``features`` side by side."""
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    """Layers that each read the block's input and the outputs of all layers before."""

    def __init__(self, in_channels: int, layers: int, growth: int) -> None:
        super().__init__(
            {f"denselayer{i + 1}": DenseLayer(in_channels + i * growth, growth) for i in range(layers)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """The input and all outputs side by side."""
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """A DenseNet for grey images ``[N, 1, H, W]``, to logits ``[N, 10]``.

    Args:
        layers: number of layers of each block; between two blocks channels, height and width are halved.
        growth: channels that each layer adds.
    """

    def __init__(self, layers: Sequence[int], growth: int) -> None:
        super().__init__()
        channels = 2 * growth
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv0"] = nn.Conv2d(1, channels, kernel_size=3, padding=1, bias=False)
        for index, count in enumerate(layers, start=1):
            parts[f"denseblock{index}"] = DenseBlock(channels, count, growth)
            channels += count * growth
            if index < len(layers):
                parts[f"transition{index}"] = _transition(channels, channels // 2)
                channels //= 2
        last = f"norm{len(layers) + 1}"
        parts[last] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of ``x``."""
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


def _transition(in_channels: int, out_channels: int) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["norm"] = nn.BatchNorm2d(in_channels)
    parts["relu"] = nn.ReLU(inplace=True)
    parts["conv"] = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    parts["pool"] = nn.AvgPool2d(kernel_size=2, stride=2)
    return nn.Sequential(parts)


def digits_densenet(*, seed: int = 0) -> DenseNet:
    """A DenseNet of two blocks of three layers, its parameters drawn from ``seed``, in eval mode."""
    return seed_parameters(DenseNet((3, 3), growth=16), seed)
