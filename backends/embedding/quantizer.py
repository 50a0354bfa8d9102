"""``EmbeddingQuantizer`` and its configuration, under the names that PyTorch users know."""

from __future__ import annotations

import torch

from ...ir.observers import PerChannelMinMaxObserver
from ...ir.specs import QuantizationConfig, QuantizationSpec
from ..pattern_quantizer import PatternQuantizer
from .patterns import PATTERNS

__all__ = ["EmbeddingQuantizer", "get_default_embedding_quantization_config"]


def get_default_embedding_quantization_config() -> QuantizationConfig:
    """The weights of embeddings in int8, [-128, 127], one scale and one float zero point a row.

    The zero point is not kept within the integers, so that a row whose values are all alike has small steps.
    There is nothing to calibrate.
    """
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_affine_float_qparams,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
    )
    return QuantizationConfig(None, None, weight, None)


class EmbeddingQuantizer(PatternQuantizer):
    """Quantizes the weights of all embeddings, unless parts are left float.

    ::

        quantizer = ComposableQuantizer([EmbeddingQuantizer(), X86InductorQuantizer().set_global(config)])

    A module name wins over a module type, that over a function type, and that over the global configuration.
    None leaves the operators selected float.
    """

    backend_name = "embedding"
    patterns = PATTERNS

    def __init__(self) -> None:
        super().__init__()
        self.set_global(get_default_embedding_quantization_config())
