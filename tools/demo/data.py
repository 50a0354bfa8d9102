"""The images of the demo: scikit-learn's digits, and seeded pictures of blended colours."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import MissingDependencyError

__all__ = ["Digits", "blended_colours", "load_digits"]

_TEST_IMAGES = 500


@attrs.frozen(eq=False)
class Digits:
    """Handwritten digits, split once: images float32 ``[N, 1, 8, 8]`` in [0, 1], labels int64 ``[N]``."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def calibration_batches(self, batch: int, count: int) -> list[Tensor]:
        """``count`` batches of ``batch`` training images each."""
        return list(self.train_images[: batch * count].split(batch))

    def test_batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images and labels in batches of ``batch``, which divides their number."""
        return zip(self.test_images.split(batch), self.test_labels.split(batch), strict=True)


def load_digits(*, seed: int) -> Digits:
    """scikit-learn's 1,797 digits, shuffled by ``seed`` and split into 1,297 to train on and 500 to test on.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        # Needed by the demo only, so it is an extra and not a dependency.
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "the digits come with scikit-learn, which is not installed",
            hint="pip install 'lowbit[demo]', or take the model that needs no data: --model resnet18",
        ) from error
    pixels, classes = datasets.load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().div(16.0).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(classes).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, train = order[:_TEST_IMAGES], order[_TEST_IMAGES:]
    return Digits(images[train], labels[train], images[test], labels[test])


def blended_colours(count: int, *, batch: int, seed: int, size: int = 224) -> list[Tensor]:
    """``count`` batches of smooth pictures, float32 ``[batch, 3, size, size]``, channels last.

    Each picture blends four random colours. Unlike noise, whose pictures all look alike to a network, they
    give logits that differ from picture to picture.
    """
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randn(count, batch, 3, 2, 2, generator=generator)
    return [
        F.interpolate(each, size=(size, size), mode="bicubic").to(memory_format=torch.channels_last)
        for each in corners
    ]
