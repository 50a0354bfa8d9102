"""``XPUInductorQuantizer`` and its default configuration, under the names of PyTorch's tutorials."""

from __future__ import annotations

import torch

from ...errors import UnsupportedError
from ...ir.observers import HistogramObserver, PerChannelMinMaxObserver
from ...ir.specs import QuantizationConfig, QuantizationSpec
from ..inductor_quantizer import EPS, InductorQuantizer
from .left_float import LEFT_FLOAT
from .patterns import PATTERNS

__all__ = ["XPUInductorQuantizer", "get_default_xpu_inductor_quantization_config"]


def get_default_xpu_inductor_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False, reduce_range: bool = False
) -> QuantizationConfig:
    """The default preset: static, 8 bits, signed.

    Activations are int8 in [-128, 127], affine, one scale a tensor, found by a histogram; weights int8 in
    [-128, 127], symmetric, one scale an output channel; biases stay float.

    Args:
        is_qat: must be false; there for the signature that all presets of Inductor backends have.
        is_dynamic: must be false, likewise.
        reduce_range: keep activations in [-64, 63].

    Raises:
        UnsupportedError: ``is_qat`` or ``is_dynamic``: these GPUs have static quantization only.
    """
    if is_qat or is_dynamic:
        raise UnsupportedError(
            f"Intel GPUs have no {'QAT' if is_qat else 'dynamic'} quantization through Inductor",
            hint="use the static preset: get_default_xpu_inductor_quantization_config()",
        )
    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-64 if reduce_range else -128,
        quant_max=63 if reduce_range else 127,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=EPS),
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=EPS),
    )
    return QuantizationConfig(activation, activation, weight, None, is_qat=False)


class XPUInductorQuantizer(InductorQuantizer):
    """Quantizes for Intel GPUs through Inductor, statically; set up as
    :class:`~lowbit.backends.inductor_quantizer.InductorQuantizer` says.
    """

    backend_name = "xpu_inductor"
    patterns = PATTERNS
    left_float = LEFT_FLOAT
