"""From a spec to the module that quantizes in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowbit.errors import SpecError
from lowbit.ir.observers import (
    DerivedFakeQuantize,
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    create_fake_quantize,
    create_observer,
)
from lowbit.ir.specs import DerivedQuantizationSpec, FixedQParamsQuantizationSpec, QuantizationSpec
from torch.fx import Graph

NODE = Graph().placeholder("x")


def qparams(sources: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return sources[0].calculate_qparams()


def test_fixed_parameters_quantize() -> None:
    spec = FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0, 0, 255, torch.per_tensor_affine)
    module: Any = create_fake_quantize(spec)
    assert isinstance(module, FixedQParamsFakeQuantize)
    assert (module.scale.item(), module.zero_point.item(), module.quant_max) == (1 / 256, 0, 255)
    assert module(torch.tensor([0.5, 2.0])).tolist() == [0.5, 255 / 256]


def test_derived_parameters_quantize() -> None:
    source = create_fake_quantize(FixedQParamsQuantizationSpec(torch.uint8, 0.5, 0))
    spec = DerivedQuantizationSpec([NODE], qparams, torch.int32, ch_axis=None)
    module: Any = create_fake_quantize(spec, derived_from=[source])
    assert isinstance(module, DerivedFakeQuantize)
    assert module.sources == (source,)
    assert (module.dtype, module.quant_max) == (torch.int32, 2**31 - 1)
    assert module(torch.tensor([0.6])).tolist() == [0.5]
    with pytest.raises(SpecError, match="derived from 1 points got 0"):
        create_fake_quantize(spec)


def test_constructors_get_the_fields_of_the_spec() -> None:
    constructor = FusedMovingAvgObsFakeQuantize.with_args(eps=2**-12, averaging_constant=0.5)
    spec = QuantizationSpec(torch.quint8, constructor, 0, 127, torch.per_tensor_affine, is_dynamic=False)
    for module in (create_fake_quantize(spec), create_observer(spec)):
        assert isinstance(module, FusedMovingAvgObsFakeQuantize)
        assert (module.dtype, module.quant_min, module.quant_max) == (torch.uint8, 0, 127)
        assert (module.eps, module.activation_post_process.averaging_constant) == (2**-12, 0.5)
    spec = QuantizationSpec(
        torch.int8,
        FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver),
        -127,
        127,
        torch.per_channel_symmetric,
        1,
    )
    module = create_fake_quantize(spec)
    assert isinstance(module, FusedMovingAvgObsFakeQuantize)
    assert (module.ch_axis, module.qscheme) == (1, torch.per_channel_symmetric)


def test_fields_that_the_observer_does_not_know_are_left_out() -> None:
    # As they are for observers: presets fill in ch_axis for per-tensor weights too.
    spec = QuantizationSpec(torch.int8, FakeQuantize.with_args(observer=MinMaxObserver), ch_axis=0)
    module = create_fake_quantize(spec)
    assert isinstance(module, FakeQuantize)
    assert module.ch_axis is None


def test_dynamic_specs() -> None:
    constructor = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, averaging_constant=1)
    module = create_fake_quantize(QuantizationSpec(torch.uint8, constructor, is_dynamic=True))
    assert isinstance(module, FakeQuantize)
    assert module.is_dynamic


def test_plain_observers_stay_what_they_are() -> None:
    for constructor in (MinMaxObserver, PlaceholderObserver):
        module = create_fake_quantize(QuantizationSpec(torch.int8, constructor), shape=(2, 3))
        assert type(module) is constructor
    cast = create_fake_quantize(QuantizationSpec(torch.float16, PlaceholderObserver))
    assert type(cast) is PlaceholderObserver
    with pytest.raises(SpecError, match="returned an int"):
        create_fake_quantize(QuantizationSpec(torch.int8, lambda: 3))  # type: ignore[arg-type, return-value]


def test_learnable_ones_get_their_channels_from_the_shape() -> None:
    constructor = LearnableFakeQuantize.with_args(observer=PerChannelMinMaxObserver)
    spec = QuantizationSpec(torch.int8, constructor, qscheme=torch.per_channel_symmetric, ch_axis=1)
    module: Any = create_fake_quantize(spec, shape=torch.Size([4, 7]))
    assert isinstance(module, LearnableFakeQuantize)
    assert module.scale.shape == (7,)
    with pytest.raises(SpecError, match="no channels"):
        create_fake_quantize(spec)
    # A shape is nothing to others.
    per_channel = FakeQuantize.with_args(observer=PerChannelMinMaxObserver)
    other = create_fake_quantize(
        QuantizationSpec(torch.int8, per_channel, qscheme=torch.per_channel_symmetric, ch_axis=1),
        shape=(4, 7),
    )
    assert isinstance(other, FakeQuantize)
