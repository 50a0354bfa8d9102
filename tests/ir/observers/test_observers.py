"""What all observers of statistics have in common, and what tells them apart."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.errors import CalibrationDataError, NotCalibratedError, SpecError
from lowbit.ir.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    Percentile,
    PerChannelMinMaxObserver,
    StatisticObserver,
)
from torch import nn

PER_TENSOR = [MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver]
PER_CHANNEL = [PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver]
AVERAGING = [MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver]
ALL = PER_TENSOR + PER_CHANNEL
# Observers of which the order of the data does not change a bit.
EXACT = [MinMaxObserver, PerChannelMinMaxObserver, HistogramObserver]

every_observer = pytest.mark.parametrize("observer_type", ALL)


def data(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


def state(observer: nn.Module) -> dict[str, Any]:
    return {name: (value.dtype, value.tolist()) for name, value in observer.state_dict().items()}


def qparams(observer: StatisticObserver) -> tuple[list[float], list[int]]:
    scale, zero_point = observer.calculate_qparams()
    return scale.tolist(), zero_point.tolist()


@every_observer
def test_observing_returns_the_tensor_itself_without_a_trace(observer_type: type[StatisticObserver]) -> None:
    observer = observer_type()
    x = data().requires_grad_()
    before = x.detach().clone()
    assert observer(x) is x
    assert torch.equal(x, before)
    assert x.grad_fn is None
    assert all(not value.requires_grad for value in observer.state_dict().values())


@every_observer
def test_shapes_and_dtypes(observer_type: type[StatisticObserver]) -> None:
    observer = observer_type()
    observer(data())
    scale, zero_point = observer.calculate_qparams()
    shape = (4,) if observer_type in PER_CHANNEL else (1,)
    assert (scale.dtype, scale.shape) == (torch.float32, shape)
    assert (zero_point.dtype, zero_point.shape) == (torch.int32, shape)
    assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.uint8, 0, 255)
    assert observer.ch_axis == (0 if observer_type in PER_CHANNEL else None)
    assert observer.eps == torch.finfo(torch.float32).eps
    assert not observer.is_dynamic


@every_observer
def test_without_data_there_are_no_parameters(observer_type: type[StatisticObserver]) -> None:
    observer = observer_type()
    observer(torch.empty(0, 6))
    assert not observer.has_data
    with pytest.raises(NotCalibratedError, match=f"{observer_type.__name__} saw no data"):
        observer.calculate_qparams()
    observer(data())
    assert observer.has_data
    observer.reset()
    assert not observer.has_data
    assert state(observer) == state(observer_type())


@every_observer
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_values_are_refused_and_change_nothing(
    observer_type: type[StatisticObserver], bad: float
) -> None:
    observer = observer_type()
    observer(data())
    before = state(observer)
    x = data(1)
    x[2, 3] = bad
    kind = {"nan": "NaN", "inf": r"\+inf", "-inf": "-inf"}[str(bad)]
    with pytest.raises(
        CalibrationDataError,
        match=rf"1 {kind} among the 24 values of a tensor of shape \[4, 6\], the first at \[2, 3\]",
    ):
        observer(x)
    assert state(observer) == before


@every_observer
@pytest.mark.parametrize(
    ("x", "found"),
    [
        (torch.ones(2, 2, dtype=torch.int64), "a tensor of torch.int64"),
        (torch.ones(2, 2, dtype=torch.bool), "a tensor of torch.bool"),
        (torch.ones(2, 2, dtype=torch.complex64), "a tensor of torch.complex64"),
        ((torch.ones(2),), "a tuple"),
    ],
)
def test_what_is_not_floating_point_is_refused(
    observer_type: type[StatisticObserver], x: torch.Tensor, found: str
) -> None:
    with pytest.raises(CalibrationDataError, match=found):
        observer_type()(x)


@every_observer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_dtype_is_observed_as_float32(
    observer_type: type[StatisticObserver], dtype: torch.dtype
) -> None:
    x = data().to(dtype)
    as_is, as_float = observer_type(), observer_type()
    assert as_is(x) is x
    as_float(x.float())
    assert state(as_is) == state(as_float)


@pytest.mark.parametrize("observer_type", EXACT)
@settings(max_examples=25, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 5))
def test_order_and_sharding_change_no_bit(
    observer_type: type[StatisticObserver], order: list[int], cut: int
) -> None:
    batches = [data(seed) * 4**seed for seed in range(5)]
    whole = observer_type()
    for x in batches:
        whole(x)
    shards = observer_type(), observer_type()
    for position, seed in enumerate(order):
        shards[position < cut](batches[seed])
    for first, second in itertools.permutations(copy.deepcopy(shards)):
        merged = copy.deepcopy(first)
        merged.merge(second)
        assert state(merged) == state(whole)
        assert qparams(merged) == qparams(whole)


@pytest.mark.parametrize("observer_type", AVERAGING)
def test_averages_are_merged_by_what_they_saw(observer_type: type[StatisticObserver]) -> None:
    one, three = observer_type(averaging_constant=1.0), observer_type(averaging_constant=1.0)
    one(torch.tensor([[0.0, 8.0]]))
    for _ in range(3):
        three(torch.tensor([[-4.0, 16.0]]))
    merged, reverse, unseen = copy.deepcopy(one), copy.deepcopy(three), observer_type()
    merged.merge(three)
    reverse.merge(one)
    assert (merged.min_val.item(), merged.max_val.item(), merged.tensors_seen.item()) == (-3.0, 14.0, 4)
    assert state(merged) == state(reverse)
    unseen.merge(merged)
    assert state(unseen) == state(merged)
    merged.merge(observer_type())
    assert state(unseen) == state(merged)


def test_merging_does_not_tie_observers_together() -> None:
    source, target = PerChannelMinMaxObserver(), PerChannelMinMaxObserver()
    source(data())
    target.merge(source)
    before = state(source)
    target(data() * 100)
    assert state(source) == before


def test_what_cannot_be_merged_is_refused() -> None:
    with pytest.raises(SpecError, match="HistogramObserver cannot be merged into a MinMaxObserver"):
        MinMaxObserver().merge(HistogramObserver())  # type: ignore[arg-type]  # the mistake under test
    small = HistogramObserver(bins=64)
    small(data())
    with pytest.raises(SpecError, match="64 bins"):
        HistogramObserver().merge(small)
    four, six = PerChannelMinMaxObserver(), PerChannelMinMaxObserver()
    four(data())
    six(data().T)
    with pytest.raises(CalibrationDataError, match="6 channels after 4"):
        four.merge(six)


@every_observer
def test_state_dict_round_trip_into_a_fresh_observer(observer_type: type[StatisticObserver]) -> None:
    observer, fresh = observer_type(), observer_type()
    observer(data())
    observer(data(1) * 3)
    buffer = io.BytesIO()
    torch.save(observer.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert fresh.has_data
    assert state(fresh) == state(observer)
    assert qparams(fresh) == qparams(observer)
    for each in (observer, fresh):
        each(data(2) * 9)
    assert state(fresh) == state(observer)


def test_a_state_with_other_bins_does_not_load() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for histogram"):
        HistogramObserver(bins=64).load_state_dict(HistogramObserver().state_dict())


@every_observer
def test_copies_are_equal_and_independent(observer_type: type[StatisticObserver]) -> None:
    observer = observer_type(eps=2**-10)
    observer.observe_once = True
    observer(data())
    before = state(observer)
    stored = io.BytesIO()
    torch.save(observer, stored)
    stored.seek(0)
    for copied in (
        copy.deepcopy(observer),
        pickle.loads(pickle.dumps(observer)),
        torch.load(stored, weights_only=False),
    ):
        assert state(copied) == before
        assert qparams(copied) == qparams(observer)
        assert copied.observe_once
        copied(data(1) * 100)
        assert state(copied) != before
    assert state(observer) == before


@every_observer
def test_converting_the_model_leaves_the_statistic_exact(observer_type: type[StatisticObserver]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), observer_type())
    model[1](data() + 1000.123)
    before = state(model[1])
    model.half().to(torch.bfloat16).double()
    assert model[0].weight.dtype is torch.float64
    assert state(model[1]) == before


@every_observer
def test_observe_once_is_idempotent(observer_type: type[StatisticObserver]) -> None:
    observer, reference = observer_type(), observer_type()
    observer.observe_once = True
    weight = data()
    reference(weight)
    for _ in range(3):
        assert observer(weight) is weight
        assert state(observer) == state(reference)


def test_observers_say_whether_they_have_seen_a_constant() -> None:
    observer = MinMaxObserver()
    weight = data()
    observer(weight)
    assert not observer.has_seen(weight)  # without observe_once nothing is remembered
    observer.observe_once = True
    observer(weight)
    assert observer.has_seen(weight)
    assert not observer.has_seen(weight.clone())
    weight += 1
    assert not observer.has_seen(weight)


@every_observer
def test_observe_once_starts_over_when_the_tensor_changed(observer_type: type[StatisticObserver]) -> None:
    def observed(x: torch.Tensor) -> dict[str, Any]:
        reference = observer_type()
        reference(x)
        return state(reference)

    observer = observer_type()
    observer.observe_once = True
    weight = nn.Parameter(data())
    observer(weight)
    with torch.no_grad():
        weight.mul_(0.25)
    observer(weight)
    assert state(observer) == observed(weight)
    other = data(1)
    observer(other)
    assert state(observer) == observed(other)
    weight.data = data(2)
    observer(weight)
    assert state(observer) == observed(weight)


def test_observe_once_does_not_take_recycled_memory_for_the_same_tensor() -> None:
    observer = MinMaxObserver()
    observer.observe_once = True
    storage = torch.tensor([1.0, 2.0])
    observer(storage.view(2))
    storage.data.fill_(5.0)
    # Same address, shape and version as the view before, which is gone.
    observer(storage.view(2))
    assert observer.max_val.item() == 5.0


def test_observe_once_looks_at_inference_tensors_every_time() -> None:
    observer = MinMaxObserver()
    observer.observe_once = True
    with torch.inference_mode():
        x = torch.tensor([1.0, 2.0])
        observer(x)
        x.mul_(2.0)
        observer(x)
    assert observer.max_val.item() == 4.0


def test_min_max_keeps_the_extremes() -> None:
    observer = MinMaxObserver()
    for x in ([3.0, 1.0], [-2.0, 0.5], [1.0]):
        observer(torch.tensor(x))
    assert (observer.min_val.item(), observer.max_val.item()) == (-2.0, 3.0)


def test_a_zero_has_no_sign() -> None:
    for zeros in ([0.0, -0.0], [-0.0, 0.0]):
        observer = MinMaxObserver()
        observer(torch.tensor(zeros))
        assert math.copysign(1.0, observer.min_val.item()) == 1.0
        assert math.copysign(1.0, observer.max_val.item()) == 1.0


def test_moving_averages_follow_their_formula() -> None:
    observer = MovingAverageMinMaxObserver(averaging_constant=0.25)
    observer(torch.tensor([-4.0, 8.0]))
    assert (observer.min_val.item(), observer.max_val.item()) == (-4.0, 8.0)
    observer(torch.tensor([0.0, 16.0]))
    assert (observer.min_val.item(), observer.max_val.item()) == (-3.0, 10.0)
    per_channel = MovingAveragePerChannelMinMaxObserver(averaging_constant=0.5, ch_axis=1)
    per_channel(torch.tensor([[0.0, 2.0], [4.0, 6.0]]))
    per_channel(torch.tensor([[8.0, 10.0]]))
    assert per_channel.min_val.tolist() == [4.0, 6.0]
    assert per_channel.max_val.tolist() == [6.0, 8.0]


def test_channels_are_those_of_the_axis() -> None:
    observer = PerChannelMinMaxObserver(ch_axis=1)
    observer(torch.tensor([[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]]))
    assert observer.min_val.tolist() == [0.0, 2.0, 4.0]
    assert observer.max_val.tolist() == [1.0, 3.0, 5.0]
    with pytest.raises(CalibrationDataError, match="2 channels after 3"):
        observer(torch.zeros(1, 2))
    with pytest.raises(CalibrationDataError, match=r"ch_axis=1 was handed a tensor of shape \[3\]"):
        observer(torch.zeros(3))


def test_the_range_rule_may_change_without_new_data() -> None:
    observer = HistogramObserver(dtype=torch.uint8)
    observer(torch.cat((torch.arange(0.0, 128.0).repeat(100), torch.tensor([1000.0]))))
    observer.range_rule = "min-max"
    assert qparams(observer) == ([torch.tensor(1000 / 255).item()], [0])
    observer.range_rule = Percentile(99.0)
    # In bins of width 1/2: the last one of the lower 99.5 % is that of 127.
    assert qparams(observer) == ([0.5], [0])
    observer.range_rule = lambda histogram, levels, symmetric: (0.0, float(levels - 1))
    assert qparams(observer) == ([1.0], [0])


def test_saturated_data_keep_their_exact_range() -> None:
    observer = HistogramObserver()
    observer(torch.linspace(-1.0, 9.0, 2000).clamp(0.0, 5.1))
    assert qparams(observer) == ([(torch.tensor(5.1) / 255).item()], [0])


def test_legacy_dtypes_are_the_plain_ones() -> None:
    assert MinMaxObserver(dtype=torch.quint8).dtype is torch.uint8
    assert PerChannelMinMaxObserver(dtype=torch.qint8).dtype is torch.int8
    assert (
        HistogramObserver(dtype=torch.qint8).quant_min,
        HistogramObserver(dtype=torch.qint8).quant_max,
    ) == (
        -128,
        127,
    )


@pytest.mark.parametrize(
    ("observer_type", "arguments", "message"),
    [
        (MinMaxObserver, {"qscheme": torch.per_channel_affine}, "was asked for torch.per_channel_affine"),
        (HistogramObserver, {"qscheme": torch.per_channel_symmetric}, "was asked for torch.per_channel_symm"),
        (PerChannelMinMaxObserver, {"qscheme": torch.per_tensor_affine}, "was asked for torch.per_tensor"),
        (MinMaxObserver, {"eps": 0.0}, "eps=0.0"),
        (MinMaxObserver, {"eps": math.nan}, "eps=nan"),
        (HistogramObserver, {"bins": 1}, "bins=1"),
        (HistogramObserver, {"is_dynamic": True}, "dynamic"),
        (PerChannelMinMaxObserver, {"is_dynamic": True}, "dynamic"),
        (MovingAverageMinMaxObserver, {"is_dynamic": True}, "averaging_constant=0.01"),
        (MovingAverageMinMaxObserver, {"averaging_constant": 0.0}, "averaging_constant=0.0"),
        (MovingAverageMinMaxObserver, {"averaging_constant": 1.5}, "averaging_constant=1.5"),
    ],
)
def test_contradictory_arguments_are_refused(
    observer_type: type[StatisticObserver], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        observer_type(**arguments)


def test_a_dynamic_moving_average_follows_each_tensor() -> None:
    observer = MovingAverageMinMaxObserver(averaging_constant=1, is_dynamic=True)
    observer(torch.tensor([0.0, 100.0]))
    observer(torch.tensor([0.0, 255.0]))
    assert observer.is_dynamic
    assert qparams(observer) == ([1.0], [0])


@every_observer
def test_what_is_printed_says_what_it_is(observer_type: type[StatisticObserver]) -> None:
    text = repr(observer_type())
    assert "dtype=torch.uint8, quant_min=0, quant_max=255" in text
    assert "has_data=False" in text
    assert ("ch_axis=0" in text) == (observer_type in PER_CHANNEL)
