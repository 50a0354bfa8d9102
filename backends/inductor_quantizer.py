"""What the quantizers of Inductor's backends share: names of setters, and the observers of activations."""

from __future__ import annotations

from ..ir.observers import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MovingAverageMinMaxObserver,
    PlaceholderObserver,
)
from ..ir.specs import ObserverOrFakeQuantizeConstructor
from .pattern_quantizer import PatternQuantizer

__all__ = ["EPS", "InductorQuantizer", "activation_observer"]

EPS = 2**-12
"""The smallest scale of the presets."""


class InductorQuantizer(PatternQuantizer):
    """A pattern quantizer whose setters have the names that PyTorch's Inductor quantizers have.

    ::

        quantizer = X86InductorQuantizer()
        quantizer.set_global(get_default_x86_inductor_quantization_config())
        quantizer.set_module_name_qconfig("head", None)  # stays float

    A module name wins over a module type, that over a function type, and that over the global configuration.
    None leaves the operators selected float. A setting that selects no operator of the model is an error when
    the model is prepared; one that decides about nothing that could be quantized is a warning.
    """

    fuses_pointwise = True
    set_function_type_qconfig = PatternQuantizer.set_function_type
    set_module_type_qconfig = PatternQuantizer.set_module_type
    set_module_name_qconfig = PatternQuantizer.set_module_name


def activation_observer(*, is_qat: bool, is_dynamic: bool) -> ObserverOrFakeQuantizeConstructor:
    """What finds the ranges of activations in the presets.

    Args:
        is_qat: a fake quantizer, for training.
        is_dynamic: of ranges that are found at run time.
    """
    if is_qat and is_dynamic:
        # The range of the current batch, and of no other.
        latest = MovingAverageMinMaxObserver.with_args(averaging_constant=1)
        return FakeQuantize.with_args(eps=EPS, observer=latest)
    if is_qat:
        return FusedMovingAvgObsFakeQuantize.with_args(eps=EPS)
    return (PlaceholderObserver if is_dynamic else HistogramObserver).with_args(eps=EPS)
