"""Specs: what they hold, what they refuse, and when one observer can serve two."""

from __future__ import annotations

import copy
import functools

import attrs
import pytest
import torch
from lowbit.errors import SpecError
from lowbit.ir.observers import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from lowbit.ir.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationConfig,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
    dtype_range,
    spec_key,
)
from torch.fx import Graph

graph = Graph()
X = graph.placeholder("x")
Y = graph.call_function(torch.ops.aten.relu.default, (X,))


def derive(observers):
    return torch.ones(1), torch.zeros(1, dtype=torch.int32)


def spec(**changes) -> QuantizationSpec:
    fields = {"dtype": torch.uint8, "observer_or_fake_quant_ctr": MinMaxObserver}
    return QuantizationSpec(**{**fields, **changes})


def fixed(**changes) -> FixedQParamsQuantizationSpec:
    return FixedQParamsQuantizationSpec(
        **{"dtype": torch.uint8, "scale": 1 / 256, "zero_point": 0, **changes}
    )


def derived(**changes) -> DerivedQuantizationSpec:
    fields = {"derived_from": [(X, Y)], "derive_qparams_fn": derive, "dtype": torch.int32}
    return DerivedQuantizationSpec(**{**fields, **changes})


def test_the_fields_and_defaults_are_those_of_the_tutorials() -> None:
    assert attrs.asdict(spec(), recurse=False) == {
        "dtype": torch.uint8,
        "observer_or_fake_quant_ctr": MinMaxObserver,
        "quant_min": None,
        "quant_max": None,
        "qscheme": None,
        "ch_axis": None,
        "is_dynamic": False,
    }
    config = QuantizationConfig(spec(), None, None, None)
    assert (config.input_activation, config.is_qat) == (spec(), False)
    assert derived().derived_from == ((X, Y),)
    assert all(
        isinstance(s, QuantizationSpecBase) for s in (spec(), fixed(), derived(), SharedQuantizationSpec(X))
    )


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.int8, (-128, 127)),
        (torch.uint8, (0, 255)),
        (torch.int16, (-(2**15), 2**15 - 1)),
        (torch.int32, (-(2**31), 2**31 - 1)),
        (torch.quint8, (0, 255)),
        (torch.qint8, (-128, 127)),
        (torch.float16, None),
        (torch.complex64, None),
        (torch.bool, None),
    ],
)
def test_the_range_of_a_dtype(dtype, expected) -> None:
    assert dtype_range(dtype) == expected


@pytest.mark.parametrize("make", [spec, fixed, derived])
@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"quant_min": 0}, "one bound without the other"),
        ({"quant_max": 1}, "one bound without the other"),
        ({"quant_min": 7, "quant_max": 3}, "quant_min=7 above quant_max=3"),
        (
            {"quant_min": 0, "quant_max": 256, "dtype": torch.uint8},
            r"torch.uint8 \(range \[0, 255\]\) cannot hold",
        ),
        ({"quant_min": -129, "quant_max": 127, "dtype": torch.int8}, "cannot hold"),
        ({"quant_min": -1, "quant_max": 127, "dtype": torch.quint8}, "cannot hold"),
    ],
)
def test_contradictory_ranges_are_refused(make, bounds, said) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        make(**bounds)
    assert caught.value.hint


@pytest.mark.parametrize("make", [spec, derived])
def test_channels_are_counted_from_the_front_and_not_found_at_run_time(make) -> None:
    with pytest.raises(SpecError, match="ch_axis=-1"):
        make(qscheme=torch.per_channel_affine, ch_axis=-1)
    with pytest.raises(SpecError, match="per-channel and dynamic"):
        make(qscheme=torch.per_channel_symmetric, ch_axis=0, is_dynamic=True)


@pytest.mark.parametrize("constructor", [None, MinMaxObserver()])
def test_an_observer_is_no_constructor(constructor) -> None:
    with pytest.raises(SpecError, match="as observer constructor"):
        spec(observer_or_fake_quant_ctr=constructor)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scale": 0.0}, "scale=0.0"),
        ({"scale": -1.0}, "scale=-1.0"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"scale": float("inf")}, "scale=inf"),
        ({"zero_point": -1}, r"zero_point=-1 outside \[0, 255\]"),
        ({"zero_point": 8, "quant_min": 0, "quant_max": 7}, r"zero_point=8 outside \[0, 7\]"),
        ({"qscheme": torch.per_channel_affine}, "one scale and the qscheme torch.per_channel_affine"),
    ],
)
def test_fixed_parameters_that_cannot_be_are_refused(fields, said) -> None:
    with pytest.raises(SpecError, match=said):
        fixed(**fields)


def test_a_spec_derived_from_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="derived from nothing"):
        derived(derived_from=[])


def test_specs_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        spec().dtype = torch.int8


@pytest.mark.parametrize(
    "make",
    [
        spec,
        fixed,
        derived,
        lambda: spec(observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=2**-12)),
        lambda: spec(observer_or_fake_quant_ctr=functools.partial(HistogramObserver, eps=2**-12)),
        lambda: spec(
            observer_or_fake_quant_ctr=functools.partial(MinMaxObserver, extra={"a": [1, 2]}["a"][0])
        ),
    ],
)
def test_specs_made_alike_have_one_key(make) -> None:
    first, second = make(), make()
    assert spec_key(first) == spec_key(second)
    assert hash(spec_key(first)) == hash(spec_key(second))
    assert spec_key(copy.copy(first)) == spec_key(first)


def test_any_difference_makes_another_key() -> None:
    # PEER: "Specs that differ only in their observer constructor are merged, and the first wins."
    different = [
        spec(),
        spec(dtype=torch.int8),
        spec(quant_min=0, quant_max=127),
        spec(quant_min=0, quant_max=255),
        spec(qscheme=torch.per_tensor_symmetric),
        spec(is_dynamic=True),
        spec(ch_axis=0),
        spec(ch_axis=1),
        spec(observer_or_fake_quant_ctr=HistogramObserver),
        spec(observer_or_fake_quant_ctr=PerChannelMinMaxObserver),
        spec(observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12)),
        spec(observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-11)),
        spec(observer_or_fake_quant_ctr=functools.partial(MinMaxObserver, eps=2**-12)),
        spec(observer_or_fake_quant_ctr=functools.partial(MinMaxObserver, eps=2**-11)),
        fixed(),
        fixed(scale=1 / 128),
        fixed(zero_point=1),
        derived(),
        derived(derived_from=[X]),
        derived(derived_from=[(X, Y), X]),
        derived(derive_qparams_fn=functools.partial(derive)),
    ]
    assert len({spec_key(s) for s in different}) == len(different)


def test_unhashable_arguments_only_ever_keep_specs_apart() -> None:
    bins = [1, 2]
    same = [spec(observer_or_fake_quant_ctr=functools.partial(MinMaxObserver, bins=bins)) for _ in range(2)]
    assert spec_key(same[0]) == spec_key(same[1])
    other = spec(observer_or_fake_quant_ctr=functools.partial(MinMaxObserver, bins=[1, 2]))
    assert spec_key(other) != spec_key(same[0])
    nested = [functools.partial(MinMaxObserver, options={"bins": 3}) for _ in range(2)]
    assert spec_key(spec(observer_or_fake_quant_ctr=nested[0])) == spec_key(
        spec(observer_or_fake_quant_ctr=nested[1])
    )
