"""Scale and zero point: the laws they keep, an exact oracle, and PyTorch's own results."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.errors import SpecError, UnsupportedError
from lowbit.ir.observers import MinMaxObserver, PerChannelMinMaxObserver
from lowbit.ir.observers.qparams import IntegerRange, qparams_of_range
from lowbit.ir.specs import SYMMETRIC_QSCHEMES, storage_dtype

EPS = torch.finfo(torch.float32).eps
DTYPES = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32]
FLOAT32_MAX = torch.finfo(torch.float32).max

reals = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-100.0, 100.0, width=32),
    st.sampled_from([0.0, -0.0, 2.0**-149, FLOAT32_MAX, -FLOAT32_MAX]),
)
qschemes = st.sampled_from([torch.per_tensor_affine, torch.per_tensor_symmetric])


def qparams(
    low: float, high: float, integers: IntegerRange, qscheme: torch.qscheme, eps: float = EPS
) -> tuple[float, int]:
    scale, zero_point = qparams_of_range(torch.tensor(low), torch.tensor(high), integers, qscheme, eps)
    assert (scale.dtype, scale.shape) == (torch.float32, (1,))
    assert (zero_point.dtype, zero_point.shape) == (torch.int32, (1,))
    return scale.item(), zero_point.item()


@settings(max_examples=300, deadline=None)
@given(reals, reals, st.sampled_from(DTYPES), qschemes, st.booleans())
def test_qparams_are_always_valid(
    a: float, b: float, dtype: torch.dtype, qscheme: torch.qscheme, reduce_range: bool
) -> None:
    integers = IntegerRange.of(dtype, reduce_range=reduce_range)
    scale, zero_point = qparams(min(a, b), max(a, b), integers, qscheme)
    assert EPS <= scale < math.inf
    # With the zero point among the integers, 0.0 = scale · (zero_point − zero_point) is exact.
    assert integers.quant_min <= zero_point <= integers.quant_max


@settings(max_examples=300, deadline=None)
@given(reals, reals, st.sampled_from([torch.int8, torch.uint8]), qschemes)
def test_scale_is_within_two_roundings_of_exact_arithmetic(
    a: float, b: float, dtype: torch.dtype, qscheme: torch.qscheme
) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    scale, zero_point = qparams(low, high, IntegerRange.of(dtype), qscheme)
    if qscheme in SYMMETRIC_QSCHEMES:
        exact = max(-Fraction(low), Fraction(high)) / Fraction(255, 2)
        assert zero_point == (0 if dtype is torch.int8 else 128)
    else:
        exact = (Fraction(high) - Fraction(low)) / 255
        exact_zero_point = torch.iinfo(dtype).min - Fraction(low) / Fraction(scale)
        assert abs(zero_point - exact_zero_point) <= Fraction(1, 2) + Fraction(1, 2**15)
    exact = max(exact, Fraction(EPS))
    assert abs(Fraction(scale) - exact) <= exact / 2**22


@pytest.mark.parametrize(
    ("low", "high", "dtype", "qscheme", "expected"),
    [
        (0.0, 255.0, torch.uint8, torch.per_tensor_affine, (1.0, 0)),
        (-128.0, 127.0, torch.uint8, torch.per_tensor_affine, (1.0, 128)),
        (-128.0, 127.0, torch.int8, torch.per_tensor_affine, (1.0, 0)),
        # The range is widened to contain 0.
        (10.0, 510.0, torch.uint8, torch.per_tensor_affine, (2.0, 0)),
        (-510.0, -10.0, torch.uint8, torch.per_tensor_affine, (2.0, 255)),
        (-510.0, 255.0, torch.int8, torch.per_tensor_symmetric, (4.0, 0)),
        (-510.0, 255.0, torch.uint8, torch.per_tensor_symmetric, (4.0, 128)),
        (0.0, 0.0, torch.uint8, torch.per_tensor_affine, (EPS, 0)),
        (0.0, 0.0, torch.int8, torch.per_tensor_symmetric, (EPS, 0)),
        (0.0, 65535.0, torch.uint16, torch.per_tensor_affine, (1.0, 0)),
        (-1.0, 1.0, torch.uint16, torch.per_tensor_symmetric, (torch.tensor(2 / 65535).item(), 32768)),
    ],
)
def test_known_answers(
    low: float, high: float, dtype: torch.dtype, qscheme: torch.qscheme, expected: tuple[float, int]
) -> None:
    assert qparams(low, high, IntegerRange.of(dtype), qscheme) == expected


def test_a_span_beyond_float32_still_has_a_finite_scale() -> None:
    scale, zero_point = qparams(
        -FLOAT32_MAX, FLOAT32_MAX, IntegerRange.of(torch.uint8), torch.per_tensor_affine
    )
    assert scale == pytest.approx(2 * FLOAT32_MAX / 255)
    assert zero_point == 128  # 127.5, rounded to even


def test_per_channel_keeps_the_channels() -> None:
    scale, zero_point = qparams_of_range(
        torch.tensor([0.0, -64.0]),
        torch.tensor([255.0, 63.5]),
        IntegerRange.of(torch.uint8),
        torch.per_channel_affine,
        EPS,
    )
    assert scale.tolist() == [1.0, 0.5]
    assert zero_point.tolist() == [0, 128]


CASES = [
    (dtype, qscheme, bounds, reduce_range)
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.uint16)
    for qscheme in (torch.per_tensor_affine, torch.per_tensor_symmetric)
    for bounds in (None, "narrow")
    for reduce_range in (False, True)
    # PyTorch halves only 8-bit ranges, and its midpoint leaves a narrowed or halved unsigned range.
    if not (reduce_range and dtype in (torch.int16, torch.uint16))
    and not (dtype is torch.uint16 and bounds)
    and not (reduce_range and qscheme is torch.per_tensor_symmetric and dtype is torch.uint8)
]


@pytest.mark.parametrize(("dtype", "qscheme", "bounds", "reduce_range"), CASES)
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max")
def test_results_are_pytorchs_to_the_bit(
    dtype: torch.dtype, qscheme: torch.qscheme, bounds: str | None, reduce_range: bool
) -> None:
    legacy = pytest.importorskip("torch.ao.quantization.observer")
    generator = torch.Generator().manual_seed(0)
    held = torch.iinfo(dtype)
    given_bounds = {} if bounds is None else {"quant_min": held.min // 2, "quant_max": held.max // 2 - 1}
    arguments = {"dtype": dtype, "qscheme": qscheme, "reduce_range": reduce_range, "eps": 2**-12}
    for offset in (-3.0, -0.1, 0.0, 0.7, 50.0):
        x = torch.randn(100, generator=generator) * 10 ** float(torch.randn((), generator=generator)) + offset
        ours = MinMaxObserver(**arguments, **given_bounds)
        theirs = legacy.MinMaxObserver(**arguments, **given_bounds)
        for observer in (ours, theirs):
            observer(x)
        assert (ours.quant_min, ours.quant_max) == (theirs.quant_min, theirs.quant_max)
        for mine, expected in zip(ours.calculate_qparams(), theirs.calculate_qparams(), strict=True):
            assert mine.tolist() == expected.tolist()


@pytest.mark.parametrize("qscheme", [torch.per_channel_affine, torch.per_channel_symmetric])
@pytest.mark.parametrize("ch_axis", [0, 1, 3])
def test_per_channel_results_are_pytorchs_to_the_bit(qscheme: torch.qscheme, ch_axis: int) -> None:
    legacy = pytest.importorskip("torch.ao.quantization.observer")
    x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    arguments = {"ch_axis": ch_axis, "dtype": torch.int8, "qscheme": qscheme}
    ours, theirs = PerChannelMinMaxObserver(**arguments), legacy.PerChannelMinMaxObserver(**arguments)
    for observer in (ours, theirs):
        observer(x)
        observer(x * 2 - 1)
    for mine, expected in zip(ours.calculate_qparams(), theirs.calculate_qparams(), strict=True):
        assert mine.tolist() == expected.tolist()


def test_ranges() -> None:
    assert IntegerRange.of(torch.int8) == IntegerRange(torch.int8, -128, 127, 0)
    assert IntegerRange.of(torch.uint8).midpoint == 128
    assert IntegerRange.of(torch.uint8, 0, 255).midpoint == 127
    assert IntegerRange.of(torch.uint8, reduce_range=True) == IntegerRange(torch.uint8, 0, 127, 64)
    assert IntegerRange.of(torch.int8, reduce_range=True) == IntegerRange(torch.int8, -64, 63, 0)
    assert IntegerRange.of(torch.int8, -8, 7).levels == 16
    assert [storage_dtype(dtype) for dtype in (torch.quint8, torch.qint8, torch.qint32, torch.int16)] == [
        torch.uint8,
        torch.int8,
        torch.int32,
        torch.int16,
    ]


@pytest.mark.parametrize(
    ("dtype", "bounds", "reduce_range", "message"),
    [
        (torch.int8, (0, None), False, "one bound without the other"),
        (torch.int8, (-129, 127), False, r"\[-129, 127\]"),
        (torch.uint8, (0, 256), False, r"\[0, 256\]"),
        (torch.uint8, (1, 255), False, r"\[1, 255\]"),
        (torch.int8, (0, 0), False, r"\[0, 0\]"),
        (torch.int8, (0, 1), True, r"\[0, 0\]"),
        (torch.int8, (7, -8), False, r"\[7, -8\]"),
    ],
)
def test_impossible_ranges_are_refused(
    dtype: torch.dtype, bounds: tuple[int | None, int | None], reduce_range: bool, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        IntegerRange.of(dtype, *bounds, reduce_range=reduce_range)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64, torch.bool])
def test_dtypes_without_kernels_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedError, match=str(dtype)):
        IntegerRange.of(dtype)
