"""A small ResNet for the 8×8 images of scikit-learn's digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .init import seed_parameters
from .resnet import BasicBlock

__all__ = ["DigitsResNet", "digits_resnet"]


class DigitsResNet(nn.Module):
    """Three residual blocks for grey images ``[N, 1, 8, 8]``, to logits ``[N, 10]``.

    The parts are those of the large ResNets (reused in-place ReLU, projections, max pool, average pool,
    flatten, linear), so that the small model goes every way the large ones go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = BasicBlock(32, 32)
        self.maxpool = nn.MaxPool2d(kernel_size=2)
        self.layer2 = BasicBlock(32, 64)
        self.layer3 = BasicBlock(64, 128, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of ``x``."""
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.maxpool(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def digits_resnet(*, zero_init_residual: bool = False, seed: int = 0) -> DigitsResNet:
    """An untrained :class:`DigitsResNet` in eval mode, its parameters drawn from ``seed``.

    With ``zero_init_residual`` the last BatchNorm of each block has a scale of 0, so that every block begins
    as its shortcut (Goyal et al., "Accurate, Large Minibatch SGD", 2017).
    """
    model = seed_parameters(DigitsResNet(), seed)
    if zero_init_residual:
        for block in (model.layer1, model.layer2, model.layer3):
            nn.init.zeros_(block.bn2.weight)
    return model
