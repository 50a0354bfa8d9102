"""The arithmetic of fake quantization: that of the converted graph, to the bit, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.errors import CalibrationDataError, UnsupportedError
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.observers.fake_quantization import choose_qparams, fake_cast, fake_quantize
from lowbit.ir.observers.qparams import IntegerRange

FLOAT32_MAX = torch.finfo(torch.float32).max
RANGES = [
    IntegerRange.of(torch.int8),
    IntegerRange.of(torch.int8, -127, 127),
    IntegerRange.of(torch.uint8),
    IntegerRange.of(torch.uint8, 0, 127),
    IntegerRange.of(torch.int8, -8, 7),
    IntegerRange.of(torch.int16),
    IntegerRange.of(torch.uint16),
    IntegerRange.of(torch.int32),
]
# torch cannot dequantize uint16 per channel.
PER_CHANNEL_RANGES = [integers for integers in RANGES if integers.dtype is not torch.uint16]
# 2^-127 is subnormal, and the smallest whose reciprocal is a float32.
scales = st.one_of(
    st.floats(2.0**-127, 2.0**100, width=32),
    st.floats(2.0**-20, 8.0, width=32),
    st.integers(-127, 20).map(lambda e: 2.0**e),
)


def bits(x: torch.Tensor) -> list[int]:
    """The bits of floats, of which torch.equal does not see the sign of zero."""
    return x.contiguous().view(torch.int32 if x.dtype is torch.float32 else torch.int16).tolist()


@st.composite
def quantizations(draw: st.DrawFn) -> tuple[IntegerRange, float, int]:
    integers = draw(st.sampled_from(RANGES))
    near = st.integers(max(integers.quant_min, -300), min(integers.quant_max, 300))
    return integers, draw(scales), draw(st.one_of(near, st.integers(integers.quant_min, integers.quant_max)))


@st.composite
def values(draw: st.DrawFn, integers: IntegerRange, scale: float, zero_point: int) -> list[float]:
    """Multiples of the scale, ties between them, values beside both, at the ends of the range and far off."""
    step = st.one_of(
        st.integers(-10, 10),
        st.integers(integers.quant_min - 3, integers.quant_min + 3).map(lambda q: q - zero_point),
        st.integers(integers.quant_max - 3, integers.quant_max + 3).map(lambda q: q - zero_point),
    )
    fraction = st.sampled_from([0.0, 0.5, -0.5, 0.25, 0.49999997, -0.49999997])
    on_the_grid = st.tuples(step, fraction).map(lambda t: (t[0] + t[1]) * scale)
    off = st.sampled_from([0.0, -0.0, FLOAT32_MAX, -FLOAT32_MAX, math.inf, -math.inf, 2.0**-149])
    anything = st.floats(width=32, allow_nan=False)
    return draw(st.lists(st.one_of(on_the_grid, on_the_grid, off, anything), min_size=1, max_size=40))


@settings(max_examples=300)
@given(st.data(), quantizations())
def test_per_tensor_it_is_what_the_converted_graph_computes(
    data: st.DataObject, quantization: tuple[IntegerRange, float, int]
) -> None:
    integers, scale, zero_point = quantization
    x = torch.tensor(data.draw(values(integers, scale, zero_point)), dtype=torch.float64).float()
    found = fake_quantize(
        x, torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32), integers, None
    )
    arguments = (scale, zero_point, integers.quant_min, integers.quant_max, integers.dtype)
    expected = qd.DEQUANTIZE_PER_TENSOR(qd.QUANTIZE_PER_TENSOR(x, *arguments), *arguments)
    assert bits(found) == bits(expected)


@settings(max_examples=100)
@given(st.data(), st.sampled_from(PER_CHANNEL_RANGES), st.integers(1, 4), st.integers(0, 2))
def test_per_channel_it_is_what_the_converted_graph_computes(
    data: st.DataObject, integers: IntegerRange, channels: int, ch_axis: int
) -> None:
    low, high = max(integers.quant_min, -300), min(integers.quant_max, 300)
    zero_points = [data.draw(st.integers(low, high)) for _ in range(channels)]
    scale = [data.draw(scales) for _ in range(channels)]
    rows = []
    for s, z in zip(scale, zero_points, strict=True):
        row = torch.tensor(data.draw(values(integers, s, z)), dtype=torch.float64).float()
        rows.append(row.repeat(12)[:12].view(3, 4))
    x = torch.stack(rows).movedim(0, ch_axis)
    parameters = torch.tensor(scale), torch.tensor(zero_points, dtype=torch.int32)
    found = fake_quantize(x, *parameters, integers, ch_axis)
    arguments = (*parameters, ch_axis, integers.quant_min, integers.quant_max, integers.dtype)
    expected = qd.DEQUANTIZE_PER_CHANNEL(qd.QUANTIZE_PER_CHANNEL(x, *arguments), *arguments)
    assert bits(found) == bits(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("integers", RANGES[:4], ids=str)
def test_half_precision_is_what_the_converted_graph_computes(
    dtype: torch.dtype, integers: IntegerRange
) -> None:
    x = (torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    bounds = integers.quant_min, integers.quant_max, integers.dtype
    for scale, zero_point in ((0.0371, 5), (2.0**-7, 0)):
        arguments = (torch.tensor(scale).item(), zero_point, *bounds)
        expected = qd.DEQUANTIZE_PER_TENSOR(
            qd.QUANTIZE_PER_TENSOR(x, *arguments), *arguments, out_dtype=dtype
        )
        parameters = torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32)
        found = fake_quantize(x, *parameters, integers, None)
        assert found.dtype is dtype
        assert bits(found) == bits(expected)
        per_channel = tuple(p.repeat(4) for p in parameters)
        arguments = (*per_channel, 0, *bounds)
        expected = qd.DEQUANTIZE_PER_CHANNEL(
            qd.QUANTIZE_PER_CHANNEL(x, *arguments), *arguments, out_dtype=dtype
        )
        assert bits(fake_quantize(x, *per_channel, integers, 0)) == bits(expected)


@settings(max_examples=200)
@given(
    st.sampled_from(RANGES[:-1]),
    st.integers(-20, 20).map(lambda e: 2.0**e),
    st.integers(-300, 300),
    st.lists(st.integers(-(2**17), 2**17), min_size=1, max_size=40),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_gradient_passes_where_the_value_is_representable(
    integers: IntegerRange, scale: float, zero_point: int, quarters: list[int], precision: torch.dtype
) -> None:
    zero_point = min(max(zero_point, integers.quant_min), integers.quant_max)
    x = (torch.tensor(quarters) * (scale / 4)).requires_grad_()
    gradient = torch.linspace(-3.0, 5.0, len(quarters))
    parameters = torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32)
    fake_quantize(x, *parameters, integers, None).backward(gradient)
    # round() of Python rounds ties to even, as torch does.
    inside = [integers.quant_min <= round(q / 4) + zero_point <= integers.quant_max for q in quarters]
    assert x.grad is not None
    assert x.grad.tolist() == torch.where(torch.tensor(inside), gradient, 0.0).tolist()


def test_values_and_gradients_are_those_of_torch() -> None:
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0)) * 3
    gradient = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1))
    scale, zero_point = torch.rand(5) / 50 + 0.01, torch.randint(0, 255, (5,), dtype=torch.int32)
    integers = IntegerRange.of(torch.uint8)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    for found, expected in (
        (
            fake_quantize(mine, scale[:1], zero_point[:1], integers, None),
            torch.fake_quantize_per_tensor_affine(theirs, scale[:1], zero_point[:1], 0, 255),
        ),
        (
            fake_quantize(mine, scale, zero_point, integers, 1),
            torch.fake_quantize_per_channel_affine(theirs, scale, zero_point, 1, 0, 255),
        ),
    ):
        mine.grad = theirs.grad = None
        found.backward(gradient)
        expected.backward(gradient)
        assert torch.equal(found, expected)
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("integers", [RANGES[0], RANGES[-1]], ids=str)
def test_nan_stays_nan(integers: IntegerRange) -> None:
    x = torch.tensor([math.nan, 1.0])
    found = fake_quantize(x, torch.tensor([0.5]), torch.zeros(1, dtype=torch.int32), integers, None)
    assert found.isnan().tolist() == [True, False]
    half = fake_quantize(x.half(), torch.tensor([0.5]), torch.zeros(1, dtype=torch.int32), integers, None)
    assert half.isnan().tolist() == [True, False]


def test_the_input_is_not_written_to_and_keeps_its_memory_format() -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    parameters = torch.rand(3), torch.zeros(3, dtype=torch.int32)
    found = fake_quantize(x, *parameters, RANGES[0], 1)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


def test_what_cannot_be_quantized_is_refused() -> None:
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(UnsupportedError, match=r"torch\.float64"):
        fake_quantize(torch.ones(2, dtype=torch.float64), one, zero, RANGES[0], None)
    with pytest.raises(CalibrationDataError, match=r"torch\.int64"):
        fake_quantize(torch.ones(2, dtype=torch.int64), one, zero, RANGES[0], None)
    for ch_axis in (0, 1):
        with pytest.raises(CalibrationDataError, match=r"3 channels with ch_axis=. was handed .* \[2\]"):
            fake_quantize(torch.ones(2), torch.ones(3), torch.zeros(3, dtype=torch.int32), RANGES[0], ch_axis)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_fake_cast_rounds_and_passes_the_gradient_exactly(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0001, -1e-9, 3.14159, 0.0]).requires_grad_()
    # float16 would round the first of them to zero.
    gradient = torch.tensor([1e-12, 2.0, -3.3, 1e30])
    found = fake_cast(x, dtype)
    found.backward(gradient)
    assert bits(found) == bits(x.detach().to(dtype).to(torch.float32))
    assert x.grad is not None
    assert torch.equal(x.grad, gradient)


@settings(max_examples=100)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    st.sampled_from(RANGES[:5]),
    st.booleans(),
)
def test_dynamic_parameters_are_those_of_the_converted_graph(
    data: list[float], integers: IntegerRange, symmetric: bool
) -> None:
    x, eps = torch.tensor(data), 2.0**-12
    qscheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    scale, zero_point = choose_qparams(x, integers, qscheme, eps)
    operator = qd.CHOOSE_QPARAMS_SYMMETRIC if symmetric else qd.CHOOSE_QPARAMS
    expected = operator(x, integers.quant_min, integers.quant_max, eps, integers.dtype)
    assert (scale.item(), zero_point.item()) == (expected[0].item(), expected[1].item())
    assert (scale.shape, scale.dtype, zero_point.dtype) == ((1,), torch.float32, torch.int32)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_dynamic_parameters_of_bad_data_are_refused(bad: float) -> None:
    with pytest.raises(CalibrationDataError, match="among the 2 values"):
        choose_qparams(torch.tensor([1.0, bad]), RANGES[2], torch.per_tensor_affine, 2.0**-12)
