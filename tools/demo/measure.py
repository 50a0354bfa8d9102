"""What quantization cost and gained: accuracy or agreement, and size."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

import attrs
import torch
from torch import Tensor, nn

__all__ = ["Agreement", "accuracy", "agreement", "saved_bytes", "sqnr_db"]

Classifier = Callable[[Tensor], Tensor]


@attrs.frozen
class Agreement:
    """How near one model's logits are to another's.

    Args:
        sqnr_db: signal to quantization noise, 10·log₁₀(Σ reference² / Σ (reference − other)²), in decibels;
            infinite where the logits are equal.
        top1: the fraction of inputs that both put in the same class.
    """

    sqnr_db: float
    top1: float


@torch.no_grad()
def accuracy(model: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The fraction of images that ``model`` (images → logits ``[N, classes]``) puts in the right class."""
    right = total = 0
    for images, labels in batches:
        right += int((model(images).argmax(dim=1) == labels).sum())
        total += len(labels)
    return right / total


@torch.no_grad()
def agreement(reference: Classifier, other: Classifier, batches: Iterable[Tensor]) -> Agreement:
    """How near ``other``'s logits are to ``reference``'s on the same images."""
    pairs = [(reference(images), other(images)) for images in batches]
    wanted, found = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    return Agreement(
        sqnr_db=sqnr_db(wanted, found),
        top1=(wanted.argmax(dim=1) == found.argmax(dim=1)).double().mean().item(),
    )


def sqnr_db(wanted: Tensor, found: Tensor) -> float:
    """The signal to quantization noise of ``found``, of any shape, in decibels; see :class:`Agreement`."""
    noise = (wanted.double() - found.double()).square().sum()
    return (10 * torch.log10(wanted.double().square().sum() / noise)).item()


def saved_bytes(model: nn.Module) -> int:
    """The size of ``model``'s state dict as ``torch.save`` writes it."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes
