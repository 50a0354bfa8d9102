"""``X86InductorQuantizer`` and its default configuration, under the names of PyTorch's tutorials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from ...errors import UnsupportedError
from ...ir.ledger import Ledger
from ...ir.observers import (
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from ...ir.quantizer import Quantizer
from ...ir.specs import ObserverOrFakeQuantizeConstructor, QuantizationConfig, QuantizationSpec
from ..annotation import annotate_patterns
from ..selection import ConfigSelection
from .patterns import PATTERNS
from .saturation import warn_of_saturation

__all__ = ["X86InductorQuantizer", "get_default_x86_inductor_quantization_config"]

_EPS = 2**-12


def get_default_x86_inductor_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False, reduce_range: bool = False
) -> QuantizationConfig:
    """The default preset: static, 8 bits.

    Activations are uint8 in [0, 255], affine, one scale a tensor, found by a histogram; weights int8 in
    [-128, 127], symmetric, one scale an output channel; biases stay float.

    Args:
        is_qat: a preset for quantization-aware training: fake quantizers over moving averages.
        is_dynamic: find activation ranges at run time.
        reduce_range: keep activations in [0, 127]; for CPUs without VNNI, whose kernels saturate with 8 bits.

    Raises:
        UnsupportedError: ``is_dynamic``, which this version does not have for X86.
    """
    if is_dynamic:
        raise UnsupportedError(
            "the X86 preset has no dynamic mode yet",
            hint="use the static preset: get_default_x86_inductor_quantization_config()",
        )
    activation_observer: ObserverOrFakeQuantizeConstructor = HistogramObserver.with_args(eps=_EPS)
    weight_observer: ObserverOrFakeQuantizeConstructor = PerChannelMinMaxObserver.with_args(eps=_EPS)
    if is_qat:
        activation_observer = FusedMovingAvgObsFakeQuantize.with_args(eps=_EPS)
        weight_observer = FusedMovingAvgObsFakeQuantize.with_args(
            eps=_EPS, observer=MovingAveragePerChannelMinMaxObserver
        )
    activation = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=127 if reduce_range else 255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=activation_observer,
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=weight_observer,
    )
    return QuantizationConfig(activation, activation, weight, None, is_qat=is_qat)


class X86InductorQuantizer(Quantizer):
    """Quantizes for X86 CPUs through Inductor.

    ::

        quantizer = X86InductorQuantizer()
        quantizer.set_global(get_default_x86_inductor_quantization_config())
        quantizer.set_module_name_qconfig("head", None)  # stays float

    A module name wins over a module type, that over a function type, and that over the global configuration.
    None leaves the operators selected float. A setting that selects no operator of the model is an error when
    the model is prepared.
    """

    backend_name = "x86_inductor"

    def __init__(self) -> None:
        self._selection = ConfigSelection()
        self._ledger = Ledger()

    def set_global(self, quantization_config: QuantizationConfig | None) -> X86InductorQuantizer:
        """Quantize every operator that the backend can run with this configuration.

        Raises:
            SpecError: it mixes static with dynamic, or training with post-training quantization.
        """
        self._selection.set_global(quantization_config)
        return self

    def set_function_type_qconfig(
        self, function_type: Callable[..., Any], quantization_config: QuantizationConfig | None
    ) -> X86InductorQuantizer:
        """Set the configuration of a function (``torch.nn.functional.linear``), called from modules or not.

        Raises:
            SpecError: see :meth:`set_global`.
            UnknownNameError: ``function_type`` is not a torch function.
        """
        self._selection.set_function_type(function_type, quantization_config)
        return self

    def set_module_type_qconfig(
        self, module_type: type[torch.nn.Module], quantization_config: QuantizationConfig | None
    ) -> X86InductorQuantizer:
        """Set the configuration of everything in modules of a class (``torch.nn.Linear``, one of your own).

        Raises:
            SpecError: see :meth:`set_global`.
        """
        self._selection.set_module_type(module_type, quantization_config)
        return self

    def set_module_name_qconfig(
        self, module_name: str, quantization_config: QuantizationConfig | None
    ) -> X86InductorQuantizer:
        """Set the configuration of everything in the module of a dotted name (``layer1.0.conv1``).

        Raises:
            SpecError: see :meth:`set_global`.
        """
        self._selection.set_module_name(module_name, quantization_config)
        return self

    def bind_ledger(self, ledger: Ledger) -> None:
        """Write decisions to ``ledger``."""
        self._ledger = ledger

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate the operators that the backend's patterns describe.

        Warns with SaturationWarning of ranges that this CPU's kernels refuse, as it has no VNNI.
        """
        self._selection.check_selectors(model.graph)
        annotate_patterns(model.graph, PATTERNS, self._selection.of, self._ledger)
        warn_of_saturation(model.graph)
        return model
