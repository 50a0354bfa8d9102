"""Observer constructors, the factory, and the observers that observe nothing."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import attrs
import pytest
import torch
from lowbit.errors import NotCalibratedError, SpecError, UnsupportedError
from lowbit.ir.observers import (
    DerivedObserver,
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    ObserverBase,
    ObserverOrFakeQuantize,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    create_observer,
)
from lowbit.ir.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    spec_key,
)
from torch import Tensor, nn


def test_constructors_are_equal_by_value() -> None:
    one = HistogramObserver.with_args(eps=2**-12, bins=64)
    same = HistogramObserver.with_args(bins=64).with_args(eps=2**-12)
    assert one == same
    assert hash(one) == hash(same)
    assert one != HistogramObserver.with_args(eps=2**-12)
    assert one != MinMaxObserver.with_args(eps=2**-12)
    assert HistogramObserver.with_args() != HistogramObserver
    for copied in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert copied == one
        assert hash(copied) == hash(one)
    assert repr(one) == "HistogramObserver.with_args(bins=64, eps=0.000244140625)"


def test_specs_with_equal_constructors_share_a_key() -> None:
    def spec(eps: float) -> QuantizationSpec:
        return QuantizationSpec(
            dtype=torch.uint8, observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=eps)
        )

    assert spec_key(spec(2**-12)) == spec_key(spec(2**-12))
    assert spec_key(spec(2**-12)) != spec_key(spec(2**-11))


def test_constructors_make_new_observers_and_later_arguments_win() -> None:
    constructor = MinMaxObserver.with_args(dtype=torch.int8, eps=0.5).with_args(eps=0.25)
    first, second = constructor(), constructor(eps=0.125)
    assert first is not second
    assert isinstance(first, MinMaxObserver)
    assert (first.dtype, first.eps) == (torch.int8, 0.25)
    assert (second.dtype, second.eps) == (torch.int8, 0.125)


def test_a_misspelt_argument_is_found_where_it_is_written() -> None:
    with pytest.raises(SpecError, match="unexpected keyword argument 'esp'"):
        HistogramObserver.with_args(esp=2**-12)


def test_factory_hands_a_spec_to_the_observer() -> None:
    spec = QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=1,
    )
    observer = create_observer(spec)
    assert isinstance(observer, PerChannelMinMaxObserver)
    assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.int8, -127, 127)
    assert (observer.qscheme, observer.ch_axis, observer.eps) == (torch.per_channel_symmetric, 1, 2**-12)
    assert create_observer(spec) is not observer


def test_factory_keeps_back_what_an_observer_does_not_take() -> None:
    spec = QuantizationSpec(
        dtype=torch.uint8,
        observer_or_fake_quant_ctr=HistogramObserver,
        qscheme=torch.per_tensor_affine,
        ch_axis=0,
    )
    assert isinstance(create_observer(spec), HistogramObserver)
    # None leaves the observer's own default.
    bare = QuantizationSpec(dtype=torch.int8, observer_or_fake_quant_ctr=PerChannelMinMaxObserver)
    observer = create_observer(bare)
    assert (observer.qscheme, observer.ch_axis) == (torch.per_channel_affine, 0)


def test_fields_of_the_spec_win_over_bound_arguments() -> None:
    spec = QuantizationSpec(
        dtype=torch.int8, observer_or_fake_quant_ctr=MinMaxObserver.with_args(dtype=torch.uint8)
    )
    assert create_observer(spec).dtype is torch.int8


class Recorder(nn.Module):
    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.keywords = keywords


class OnlyDtype(ObserverBase):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return torch.ones(1), torch.zeros(1, dtype=torch.int32)


def test_factory_serves_observers_of_users() -> None:
    def spec(constructor: Any) -> QuantizationSpec:
        return QuantizationSpec(
            dtype=torch.int8, observer_or_fake_quant_ctr=constructor, quant_min=-8, quant_max=7
        )

    everything = {"dtype": torch.int8, "quant_min": -8, "quant_max": 7, "is_dynamic": False}
    assert create_observer(spec(Recorder)).keywords == everything
    assert create_observer(spec(functools.partial(Recorder, own=1))).keywords == {**everything, "own": 1}
    own = create_observer(spec(OnlyDtype))
    assert own.dtype is torch.int8
    assert own.has_data
    assert isinstance(own, ObserverOrFakeQuantize)
    assert isinstance(create_observer(spec(OnlyDtype.with_args())), OnlyDtype)
    assert isinstance(create_observer(spec(lambda: OnlyDtype(torch.int8))), OnlyDtype)
    with pytest.raises(SpecError, match="returned a dict"):
        create_observer(spec(lambda **keywords: keywords))


def test_factory_makes_fixed_observers() -> None:
    spec = FixedQParamsQuantizationSpec(dtype=torch.uint8, scale=1 / 256, zero_point=3)
    observer = create_observer(spec)
    assert isinstance(observer, FixedQParamsObserver)
    assert (observer.quant_min, observer.quant_max, observer.qscheme) == (0, 255, torch.per_tensor_affine)
    x = torch.tensor([float("nan")])
    assert observer(x) is x
    assert observer.has_data
    scale, zero_point = observer.calculate_qparams()
    assert (scale.dtype, scale.tolist()) == (torch.float32, [1 / 256])
    assert (zero_point.dtype, zero_point.tolist()) == (torch.int32, [3])
    restored = FixedQParamsObserver(1.0, 0)
    restored.load_state_dict(observer.state_dict())
    assert restored.scale.tolist() == [1 / 256]
    signed = create_observer(attrs.evolve(spec, dtype=torch.int8, quant_min=-8, quant_max=7))
    assert (signed.quant_min, signed.quant_max) == (-8, 7)


@pytest.mark.parametrize(
    ("scale", "zero_point", "is_dynamic", "message"),
    [
        (0.0, 0, False, "scale=0.0"),
        (-1.0, 0, False, "scale=-1.0"),
        (1e-60, 0, False, "scale=1e-60"),
        (float("inf"), 0, False, "scale=inf"),
        (1.0, 256, False, "zero_point=256"),
        (1.0, -1, False, "zero_point=-1"),
        (1.0, 0, True, "dynamic"),
    ],
)
def test_impossible_fixed_parameters_are_refused(
    scale: float, zero_point: int, is_dynamic: bool, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        FixedQParamsObserver(scale, zero_point, is_dynamic=is_dynamic)


def bias_qparams(sources: list[Any]) -> tuple[Tensor, Tensor]:
    activation, weight = sources
    activation_scale, _ = activation.calculate_qparams()
    weight_scale, _ = weight.calculate_qparams()
    return torch.tensor([activation_scale * weight_scale]).to(torch.float32), torch.tensor([0])


def bias_spec(**changes: Any) -> DerivedQuantizationSpec:
    node = torch.fx.Graph().placeholder("x")
    return DerivedQuantizationSpec(
        **{
            "derived_from": (node, node),
            "derive_qparams_fn": bias_qparams,
            "dtype": torch.int32,
            "quant_min": -(2**31),
            "quant_max": 2**31 - 1,
            "qscheme": torch.per_tensor_symmetric,
            **changes,
        }
    )


def test_factory_makes_derived_observers() -> None:
    sources = [MinMaxObserver(), MinMaxObserver(dtype=torch.int8)]
    observer = create_observer(bias_spec(), derived_from=sources)
    assert isinstance(observer, DerivedObserver)
    assert (observer.dtype, observer.qscheme) == (torch.int32, torch.per_tensor_symmetric)
    sources[0](torch.tensor([0.0, 255.0]))
    assert not observer.has_data
    with pytest.raises(NotCalibratedError, match="source that saw no data"):
        observer.calculate_qparams()
    sources[1](torch.tensor([-32.0, 31.75]))
    assert observer.has_data
    scale, zero_point = observer.calculate_qparams()
    assert (scale.dtype, scale.tolist()) == (torch.float32, [0.25])
    assert (zero_point.dtype, zero_point.tolist()) == (torch.int32, [0])
    x = torch.ones(3)
    assert observer(x) is x


def test_derived_observers_stay_tied_to_their_sources_when_the_model_is_copied() -> None:
    sources = [MinMaxObserver(), MinMaxObserver()]
    model = nn.ModuleList([create_observer(bias_spec(), derived_from=sources), *sources])
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        derived, first, second = copied
        assert derived.sources == (first, second)
    # The sources' buffers are saved once, by their own names.
    assert not any(name.startswith("0.") for name in model.state_dict())


def test_factory_refuses_derived_specs_without_their_sources() -> None:
    with pytest.raises(SpecError, match="derived from 2 points got 1 observers"):
        create_observer(bias_spec(), derived_from=[MinMaxObserver()])


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [
        (torch.tensor([0.0]), torch.tensor([0]), "the scale"),
        (torch.tensor([float("nan")]), torch.tensor([0]), "the scale"),
        (torch.tensor([1.0]), torch.tensor([2**31]), "the zero point"),
    ],
)
def test_bad_derived_parameters_are_refused(scale: Tensor, zero_point: Tensor, message: str) -> None:
    observer = create_observer(
        bias_spec(derive_qparams_fn=lambda sources: (scale, zero_point)),
        derived_from=[OnlyDtype(torch.int8), OnlyDtype(torch.int8)],
    )
    with pytest.raises(SpecError, match=message):
        observer.calculate_qparams()


def test_placeholders_mark_and_observe_nothing() -> None:
    dynamic = create_observer(
        QuantizationSpec(
            dtype=torch.uint8,
            observer_or_fake_quant_ctr=PlaceholderObserver.with_args(eps=2**-12),
            qscheme=torch.per_tensor_affine,
            is_dynamic=True,
        )
    )
    assert isinstance(dynamic, PlaceholderObserver)
    assert dynamic.is_dynamic
    assert dynamic.has_data
    assert (dynamic.quant_min, dynamic.quant_max, dynamic.eps) == (0, 255, 2**-12)
    x = torch.tensor([1], dtype=torch.int64)
    assert dynamic(x) is x
    assert not dynamic.state_dict()
    with pytest.raises(UnsupportedError, match="no scale and zero point"):
        dynamic.calculate_qparams()
    cast = create_observer(
        QuantizationSpec(dtype=torch.float16, observer_or_fake_quant_ctr=PlaceholderObserver)
    )
    assert (cast.dtype, cast.quant_min, cast.quant_max) == (torch.float16, None, None)
    assert PlaceholderObserver().dtype is torch.float32


def test_moving_averages_take_their_constant_by_with_args() -> None:
    spec = QuantizationSpec(
        dtype=torch.uint8,
        observer_or_fake_quant_ctr=MovingAverageMinMaxObserver.with_args(averaging_constant=0.5),
    )
    assert create_observer(spec).averaging_constant == 0.5
