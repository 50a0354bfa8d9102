"""Training on the digits: a few hundred steps, seconds on one core, the same weights for a seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ..models import DigitsResNet, digits_resnet
from .data import Digits

__all__ = ["EPOCHS", "fit", "train_digits"]

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
    fit(
        model,
        digits,
        epochs=EPOCHS,
        peak_learning_rate=_PEAK_LEARNING_RATE,
        seed=seed,
        on_epoch=on_epoch,
    )
    return model.eval()


def fit(
    model: nn.Module,
    digits: Digits,
    *,
    epochs: int,
    peak_learning_rate: float,
    seed: int,
    on_epoch: Callable[[float], None] = lambda loss: None,
) -> None:
    """Train ``model`` in place, in the mode that it is in, by SGD with a one-cycle schedule.

    Args:
        model: images ``[N, 1, 8, 8]`` → logits ``[N, 10]``.
        digits: what it is trained on.
        epochs: how often every image is seen.
        peak_learning_rate: the highest of the schedule.
        seed: decides the order of the images.
        on_epoch: called after each epoch with its mean loss.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(digits.train_labels)
    # The last batch may be small, and BatchNorm learns nothing good from a batch of a few images.
    steps = count // _BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=peak_learning_rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak_learning_rate, total_steps=epochs * steps
    )
    for _ in range(epochs):
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
