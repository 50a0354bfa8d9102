"""``ArmInductorQuantizer`` and its default configuration, under the names that PyTorch users know."""

from __future__ import annotations

import torch

from ...ir.observers import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PlaceholderObserver,
)
from ...ir.specs import ObserverOrFakeQuantizeConstructor, QuantizationConfig, QuantizationSpec
from ..pattern_quantizer import PatternQuantizer
from ..x86_inductor.left_float import LEFT_FLOAT
from .patterns import PATTERNS

__all__ = ["ArmInductorQuantizer", "get_default_arm_inductor_quantization_config"]

_EPS = 2**-12


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
        observer_or_fake_quant_ctr=_activation_observer(is_qat, is_dynamic),
    )
    weight_observer: ObserverOrFakeQuantizeConstructor = MinMaxObserver.with_args(eps=_EPS)
    if is_qat:
        weight_observer = FusedMovingAvgObsFakeQuantize.with_args(
            eps=_EPS, observer=MovingAverageMinMaxObserver
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


def _activation_observer(is_qat: bool, is_dynamic: bool) -> ObserverOrFakeQuantizeConstructor:
    if is_qat and is_dynamic:
        # The range of the current batch, and of no other.
        latest = MovingAverageMinMaxObserver.with_args(averaging_constant=1)
        return FakeQuantize.with_args(eps=_EPS, observer=latest)
    if is_qat:
        return FusedMovingAvgObsFakeQuantize.with_args(eps=_EPS)
    return (PlaceholderObserver if is_dynamic else HistogramObserver).with_args(eps=_EPS)


class ArmInductorQuantizer(PatternQuantizer):
    """Quantizes for Arm CPUs through Inductor.

    ::

        quantizer = ArmInductorQuantizer()
        quantizer.set_global(get_default_arm_inductor_quantization_config())
        quantizer.set_module_name_qconfig("head", None)  # stays float

    A module name wins over a module type, that over a function type, and that over the global configuration.
    None leaves the operators selected float. A setting that selects no operator of the model is an error when
    the model is prepared.
    """

    backend_name = "arm_inductor"
    patterns = PATTERNS
    left_float = LEFT_FLOAT

    set_function_type_qconfig = PatternQuantizer.set_function_type
    set_module_type_qconfig = PatternQuantizer.set_module_type
    set_module_name_qconfig = PatternQuantizer.set_module_name
