"""Observers and fake quantizers: mergeable statistics of tensors, and what reads parameters from them.

Quantization parameters are a scale and a zero point. Observers only look at tensors; fake quantizers also
quantize and dequantize them, for quantization-aware training.
"""

from .base import ObserverBase, ObserverOrFakeQuantize
from .derived import DerivedObserver
from .derived_fake_quantize import DerivedFakeQuantize
from .factory import create_fake_quantize, create_observer
from .fake_quantize import FakeQuantize, FixedQParamsFakeQuantize, FusedMovingAvgObsFakeQuantize
from .fake_quantize_base import FakeQuantizeBase
from .histogram_observer import HistogramObserver
from .learnable import LearnableFakeQuantize
from .min_max import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from .partial import ObserverConstructor
from .range_rules import Percentile
from .statistic import StatisticObserver
from .toggles import disable_fake_quant, disable_observer, enable_fake_quant, enable_observer, observing
from .unobserved import FixedQParamsObserver, PlaceholderObserver

__all__ = [
    "DerivedFakeQuantize",
    "DerivedObserver",
    "FakeQuantize",
    "FakeQuantizeBase",
    "FixedQParamsFakeQuantize",
    "FixedQParamsObserver",
    "FusedMovingAvgObsFakeQuantize",
    "HistogramObserver",
    "LearnableFakeQuantize",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "ObserverBase",
    "ObserverConstructor",
    "ObserverOrFakeQuantize",
    "PerChannelMinMaxObserver",
    "Percentile",
    "PlaceholderObserver",
    "StatisticObserver",
    "create_fake_quantize",
    "create_observer",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
    "observing",
]
