"""``XNNPACKQuantizer`` and its symmetric configuration, under the names of PyTorch's tutorials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch._ops import OpOverloadPacket  # the class of every ATen operator has no public name

from ...ir.observers import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from ...ir.schema import OpOverload
from ...ir.specs import ObserverOrFakeQuantizeConstructor, QuantizationConfig, QuantizationSpec
from ..pattern_quantizer import PatternQuantizer
from .gru import GRU_INPUTS
from .patterns import PATTERNS

__all__ = ["XNNPACKQuantizer", "get_symmetric_quantization_config"]

_EPS = 2**-12


def get_symmetric_quantization_config(  # noqa: PLR0917 - the arguments and order of the tutorials
    is_per_channel: bool = False,
    is_qat: bool = False,
    is_dynamic: bool = False,
    act_qmin: int = -128,
    act_qmax: int = 127,
    weight_qmin: int = -127,
    weight_qmax: int = 127,
) -> QuantizationConfig:
    """The presets of XNNPACK: int8 activations, affine, and symmetric int8 weights; biases stay float.

    Args:
        is_per_channel: one scale an output channel of the weights, instead of one a tensor.
        is_qat: a preset for quantization-aware training.
        is_dynamic: find activation ranges at run time; linear only.
        act_qmin: smallest quantized activation.
        act_qmax: largest quantized activation.
        weight_qmin: smallest quantized weight.
        weight_qmax: largest quantized weight.

    Raises:
        SpecError: a range that int8 cannot hold.
    """
    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=act_qmin,
        quant_max=act_qmax,
        qscheme=torch.per_tensor_affine,
        is_dynamic=is_dynamic,
        observer_or_fake_quant_ctr=_activation_observer(is_qat, is_dynamic),
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=weight_qmin,
        quant_max=weight_qmax,
        qscheme=torch.per_channel_symmetric if is_per_channel else torch.per_tensor_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=_weight_observer(is_qat, is_per_channel),
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


def _weight_observer(is_qat: bool, is_per_channel: bool) -> ObserverOrFakeQuantizeConstructor:
    if is_qat:
        observer = MovingAveragePerChannelMinMaxObserver if is_per_channel else MovingAverageMinMaxObserver
        return FusedMovingAvgObsFakeQuantize.with_args(eps=_EPS, observer=observer)
    return (PerChannelMinMaxObserver if is_per_channel else MinMaxObserver).with_args(eps=_EPS)


class XNNPACKQuantizer(PatternQuantizer):
    """Quantizes for XNNPACK, the CPU kernels of ExecuTorch.

    ::

        quantizer = XNNPACKQuantizer()
        quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
        quantizer.set_object_type(torch.nn.functional.linear, None)  # stays float

    A module name wins over a module type, that over an operator type, and that over the global configuration.
    None leaves the operators selected float. A setting that selects no operator of the model is an error when
    the model is prepared; one that decides about nothing that could be quantized is a warning.
    """

    backend_name = "xnnpack"
    patterns = PATTERNS
    by_hand = (GRU_INPUTS,)

    def set_object_type(
        self,
        object_type: type[torch.nn.Module] | OpOverload | OpOverloadPacket | Callable[..., Any],
        quantization_config: QuantizationConfig | None,
    ) -> Self:
        """Set the configuration of a module class, a torch function or an ATen operator.

        Raises:
            SpecError: see :meth:`set_global`.
            UnknownNameError: ``object_type`` is a function that is not torch's.
        """
        if isinstance(object_type, type) and issubclass(object_type, torch.nn.Module):
            return self.set_module_type(object_type, quantization_config)
        if isinstance(object_type, (OpOverload, OpOverloadPacket)):
            return self.set_operator_type(object_type, quantization_config)
        return self.set_function_type(object_type, quantization_config)

    def set_operator_type(
        self, operator_type: OpOverload | OpOverloadPacket, quantization_config: QuantizationConfig | None
    ) -> Self:
        """Set the configuration of an ATen operator (``torch.ops.aten.linear.default``).

        Raises:
            SpecError: see :meth:`set_global`.
        """
        self._selection.set_operator(operator_type, quantization_config)
        return self
