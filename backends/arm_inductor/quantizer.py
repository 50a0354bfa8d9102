"""``ArmInductorQuantizer`` and its default configuration, under the names that PyTorch users know."""

from __future__ import annotations

import torch

from ...ir.observers import (
    FusedMovingAvgObsFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
)
from ...ir.specs import ObserverOrFakeQuantizeConstructor, QuantizationConfig, QuantizationSpec
from ..inductor_quantizer import EPS, InductorQuantizer, activation_observer
from ..x86_inductor.left_float import LEFT_FLOAT
from .patterns import PATTERNS

__all__ = ["ArmInductorQuantizer", "get_default_arm_inductor_quantization_config"]


def get_default_arm_inductor_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False
) -> QuantizationConfig:
    """The default preset: 8 bits, signed, one scale a tensor.

    Activations are int8 in [-128, 127], affine; weights int8 in [-128, 127], symmetric; biases stay float.

    Args:
        is_qat: a preset for quantization-aware training: fake quantizers over moving averages.
        is_dynamic: find activation ranges at run time; linear only, the other operators stay float.
    """
    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=is_dynamic,
        observer_or_fake_quant_ctr=activation_observer(is_qat=is_qat, is_dynamic=is_dynamic),
    )
    weight_observer: ObserverOrFakeQuantizeConstructor = MinMaxObserver.with_args(eps=EPS)
    if is_qat:
        weight_observer = FusedMovingAvgObsFakeQuantize.with_args(
            eps=EPS, observer=MovingAverageMinMaxObserver
        )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=weight_observer,
    )
    # What is found at run time has no scale to write results with.
    return QuantizationConfig(activation, None if is_dynamic else activation, weight, None, is_qat)


class ArmInductorQuantizer(InductorQuantizer):
    """Quantizes for Arm CPUs through Inductor; set up as
    :class:`~lowbit.backends.inductor_quantizer.InductorQuantizer` says.
    """

    backend_name = "arm_inductor"
    patterns = PATTERNS
    left_float = LEFT_FLOAT
