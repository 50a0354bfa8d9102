"""The published models by name, each with inputs to calibrate and to measure it on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs
import torch
from torch import Tensor, nn

from ..demo.data import blended_colours
from .bert import bert_base, minilm
from .lstm import lstm_tagger
from .mobilenet_v2 import mobilenet_v2
from .mobilenet_v3 import mobilenet_v3_small
from .resnet import resnet18, resnet50
from .vit import vit_small

__all__ = ["CATALOGUE", "CatalogueEntry"]


@attrs.frozen
class CatalogueEntry:
    """One model of one input tensor.

    Args:
        make: the model in eval mode, the same at every call. Models of images are channels last.
        batches: ``batches(count, batch, seed)`` are ``count`` different inputs of ``batch`` images
            (float32 ``[batch, 3, 224, 224]``, channels last) or sequences (int64 ``[batch, 128]``).
    """

    make: Callable[[], nn.Module]
    batches: Callable[[int, int, int], list[Tensor]]


def _images(make: Callable[[], nn.Module]) -> CatalogueEntry:
    return CatalogueEntry(partial(_channels_last, make), _pictures)


def _channels_last(make: Callable[[], nn.Module]) -> nn.Module:
    # torch's stub of `to` lacks this overload.
    return make().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _pictures(count: int, batch: int, seed: int) -> list[Tensor]:
    return blended_colours(count, batch=batch, seed=seed)


def _sequences(make: Callable[[], nn.Module], *, vocabulary: int) -> CatalogueEntry:
    return CatalogueEntry(make, partial(_token_ids, vocabulary))


def _token_ids(vocabulary: int, count: int, batch: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(vocabulary, (count, batch, 128), generator=generator))


CATALOGUE: dict[str, CatalogueEntry] = {
    "resnet18": _images(resnet18),
    "resnet50": _images(resnet50),
    "mobilenet_v2": _images(mobilenet_v2),
    "mobilenet_v3_small": _images(mobilenet_v3_small),
    "vit_small": _images(vit_small),
    "bert_base": _sequences(bert_base, vocabulary=30_522),
    "minilm": _sequences(minilm, vocabulary=30_522),
    "lstm_tagger": _sequences(lstm_tagger, vocabulary=10_000),
}
"""The models that benchmarks compare flows on."""
