"""The observers and fake quantizers that default QConfigs are made of, under PyTorch's names."""

from __future__ import annotations

from typing import Final

import torch

from ...ir.observers import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)

__all__ = [
    "default_dynamic_fake_quant",
    "default_dynamic_quant_observer",
    "default_fake_quant",
    "default_fixed_qparams_range_0to1_fake_quant",
    "default_fixed_qparams_range_0to1_observer",
    "default_fixed_qparams_range_neg1to1_fake_quant",
    "default_fixed_qparams_range_neg1to1_observer",
    "default_float_qparams_observer",
    "default_fused_act_fake_quant",
    "default_fused_per_channel_wt_fake_quant",
    "default_fused_wt_fake_quant",
    "default_histogram_fake_quant",
    "default_histogram_observer",
    "default_observer",
    "default_per_channel_weight_fake_quant",
    "default_per_channel_weight_observer",
    "default_placeholder_observer",
    "default_weight_fake_quant",
    "default_weight_observer",
    "fused_per_channel_wt_fake_quant_range_neg_127_to_127",
    "fused_wt_fake_quant_range_neg_127_to_127",
    "per_channel_weight_observer_range_neg_127_to_127",
    "weight_observer_range_neg_127_to_127",
]

_QUINT8: Final = {"dtype": torch.quint8, "quant_min": 0, "quant_max": 255}
_QINT8: Final = {"dtype": torch.qint8, "quant_min": -128, "quant_max": 127}
_NARROW: Final = {"dtype": torch.qint8, "quant_min": -127, "quant_max": 127, "eps": 2**-12}
_SYMMETRIC: Final = {"qscheme": torch.per_tensor_symmetric}
_PER_CHANNEL: Final = {"qscheme": torch.per_channel_symmetric}
_AVERAGE: Final = {"observer": MovingAverageMinMaxObserver}
_AVERAGES: Final = {"observer": MovingAveragePerChannelMinMaxObserver}

# Observers of activations.
default_observer = MinMaxObserver.with_args(quant_min=0, quant_max=127)
default_histogram_observer = HistogramObserver.with_args(quant_min=0, quant_max=127)
default_placeholder_observer = PlaceholderObserver
default_dynamic_quant_observer = PlaceholderObserver.with_args(**_QUINT8, is_dynamic=True)
default_fixed_qparams_range_0to1_observer = FixedQParamsObserver.with_args(
    scale=1 / 256, zero_point=0, **_QUINT8
)
default_fixed_qparams_range_neg1to1_observer = FixedQParamsObserver.with_args(
    scale=2 / 256, zero_point=128, **_QUINT8
)

# Observers of weights.
default_weight_observer = MinMaxObserver.with_args(dtype=torch.qint8, **_SYMMETRIC)
default_per_channel_weight_observer = PerChannelMinMaxObserver.with_args(dtype=torch.qint8, **_PER_CHANNEL)
default_float_qparams_observer = PerChannelMinMaxObserver.with_args(
    dtype=torch.quint8, qscheme=torch.per_channel_affine_float_qparams, ch_axis=0
)
weight_observer_range_neg_127_to_127 = MinMaxObserver.with_args(**_NARROW, **_SYMMETRIC)
per_channel_weight_observer_range_neg_127_to_127 = PerChannelMinMaxObserver.with_args(
    **_NARROW, **_PER_CHANNEL
)

# Fake quantizers of activations.
default_fake_quant = FakeQuantize.with_args(
    **_AVERAGE, **_QUINT8, qscheme=torch.per_tensor_affine, reduce_range=True
)
default_histogram_fake_quant = FakeQuantize.with_args(
    observer=HistogramObserver, **_QUINT8, qscheme=torch.per_tensor_affine, reduce_range=True
)
default_fused_act_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(**_AVERAGE, **_QUINT8)
default_dynamic_fake_quant = FakeQuantize.with_args(
    **_AVERAGE, **_QUINT8, is_dynamic=True, averaging_constant=1
)
default_fixed_qparams_range_0to1_fake_quant = FixedQParamsFakeQuantize.with_args(
    observer=default_fixed_qparams_range_0to1_observer
)
default_fixed_qparams_range_neg1to1_fake_quant = FixedQParamsFakeQuantize.with_args(
    observer=default_fixed_qparams_range_neg1to1_observer
)

# Fake quantizers of weights.
default_weight_fake_quant = FakeQuantize.with_args(**_AVERAGE, **_QINT8, **_SYMMETRIC)
default_per_channel_weight_fake_quant = FakeQuantize.with_args(
    **_AVERAGES, **_QINT8, **_PER_CHANNEL, ch_axis=0
)
default_fused_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(**_AVERAGE, **_QINT8, **_SYMMETRIC)
default_fused_per_channel_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    **_AVERAGES, **_QINT8, **_PER_CHANNEL
)
fused_wt_fake_quant_range_neg_127_to_127 = FusedMovingAvgObsFakeQuantize.with_args(
    **_AVERAGE, **_NARROW, **_SYMMETRIC
)
fused_per_channel_wt_fake_quant_range_neg_127_to_127 = FusedMovingAvgObsFakeQuantize.with_args(
    **_AVERAGES, **_NARROW, **_PER_CHANNEL
)
