"""Observers: mergeable statistics of tensors, and the rules that read quantization parameters from them."""

from .base import ObserverBase, ObserverOrFakeQuantize
from .derived import DerivedObserver
from .factory import create_observer
from .histogram_observer import HistogramObserver
from .min_max import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from .partial import ObserverConstructor
from .range_rules import Percentile
from .statistic import StatisticObserver
from .unobserved import FixedQParamsObserver, PlaceholderObserver

__all__ = [
    "DerivedObserver",
    "FixedQParamsObserver",
    "HistogramObserver",
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
    "create_observer",
]
