"""Training of the digits model: a few hundred steps, seconds on one core, the same weights for a seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..models import DigitsResNet, digits_resnet
from .data import Digits

__all__ = ["EPOCHS", "train_digits"]

EPOCHS = 12
_BATCH = 64
_PEAK_LEARNING_RATE = 0.05


def train_digits(
    digits: Digits, *, seed: int, on_epoch: Callable[[float], None] = lambda loss: None
) -> DigitsResNet:
    """A :class:`DigitsResNet` trained on ``digits`` from ``seed``, in eval mode.

    ``on_epoch`` is called after each of the :data:`EPOCHS` epochs with the epoch's mean loss.
    """
    model = digits_resnet(seed=seed).train()
    generator = torch.Generator().manual_seed(seed)
    count = len(digits.train_labels)
    # The last batch may be small, and BatchNorm learns nothing good from a batch of a few images.
    steps = count // _BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=_PEAK_LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_PEAK_LEARNING_RATE, total_steps=EPOCHS * steps
    )
    for _ in range(EPOCHS):
        order = torch.randperm(count, generator=generator)
        total = 0.0
        for picked in order[: steps * _BATCH].split(_BATCH):
            loss = F.cross_entropy(model(digits.train_images[picked]), digits.train_labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        on_epoch(total / steps)
    return model.eval()
