"""``X86InductorQuantizer`` and its configurations, under the names of PyTorch's tutorials."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from ...ir.observers import (
    FusedMovingAvgObsFakeQuantize,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from ...ir.specs import ObserverOrFakeQuantizeConstructor, QuantizationConfig, QuantizationSpec
from ..inductor_quantizer import EPS, InductorQuantizer, activation_observer
from .left_float import LEFT_FLOAT
from .patterns import PATTERNS
from .saturation import warn_of_saturation

__all__ = [
    "X86InductorQuantizer",
    "get_default_x86_inductor_quantization_config",
    "get_x86_inductor_linear_dynamic_fp16_config",
    "get_x86_inductor_linear_weight_only_config",
]


def get_default_x86_inductor_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False, reduce_range: bool = False
) -> QuantizationConfig:
    """The default preset: static, 8 bits.

    Activations are uint8 in [0, 255], affine, one scale a tensor, found by a histogram; weights int8 in
    [-128, 127], symmetric, one scale an output channel; biases stay float.

    Args:
        is_qat: a preset for quantization-aware training: fake quantizers over moving averages.
        is_dynamic: find activation ranges at run time; linear only, the other operators stay float.
        reduce_range: keep activations in [0, 127]; for CPUs without VNNI, whose kernels saturate with 8 bits.
    """
    activation = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=127 if reduce_range else 255,
        qscheme=torch.per_tensor_affine,
        is_dynamic=is_dynamic,
        observer_or_fake_quant_ctr=activation_observer(is_qat=is_qat, is_dynamic=is_dynamic),
    )
    # What is found at run time has no scale to write results with.
    return QuantizationConfig(activation, None if is_dynamic else activation, _weight(is_qat), None, is_qat)


def get_x86_inductor_linear_weight_only_config() -> QuantizationConfig:
    """Weights of linears in int8, one scale an output channel; activations and biases stay float.

    Models are a quarter of the size. There is nothing to calibrate. The kernel is for bfloat16 activations of
    few rows (see ``propagate-bf16``); elsewhere the compiler dequantizes the weight and multiplies in float.
    """
    return QuantizationConfig(None, None, _weight(is_qat=False), None)


def get_x86_inductor_linear_dynamic_fp16_config() -> QuantizationConfig:
    """Weights of linears in float16; activations and biases stay float32, and so do sums.

    Models are half the size. There is nothing to calibrate. The kernel is for CPUs with float16 arithmetic;
    elsewhere the compiler casts the weight and multiplies in float32.
    """
    weight = QuantizationSpec(dtype=torch.float16, observer_or_fake_quant_ctr=PlaceholderObserver)
    return QuantizationConfig(None, None, weight, None)


def _weight(is_qat: bool) -> QuantizationSpec:
    observer: ObserverOrFakeQuantizeConstructor = PerChannelMinMaxObserver.with_args(eps=EPS)
    if is_qat:
        observer = FusedMovingAvgObsFakeQuantize.with_args(
            eps=EPS, observer=MovingAveragePerChannelMinMaxObserver
        )
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=observer,
    )


class X86InductorQuantizer(InductorQuantizer):
    """Quantizes for X86 CPUs through Inductor; set up as
    :class:`~lowbit.backends.inductor_quantizer.InductorQuantizer` says.
    """

    backend_name = "x86_inductor"
    patterns = PATTERNS
    left_float = LEFT_FLOAT

    def validate(self, model: GraphModule) -> None:
        """Warn with SaturationWarning of ranges that this CPU's kernels refuse, as it has no VNNI."""
        warn_of_saturation(model.graph)
