"""The accumulators are those of exact arithmetic; on scales that are powers of two so are the results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import FixedQParamsQuantizationSpec, QuantizationSpec
from lowbit.ir.observers import PerChannelMinMaxObserver
from torch import Tensor, nn

aten = torch.ops.aten

EXACT = {
    aten.linear.default: lambda x, w: x.long() @ w.long().T,
    aten.convolution.default: lambda x, w, *rest: aten.convolution(x.long(), w.long(), *rest),
    aten.mul.Tensor: lambda x, y: x.long() * y.long(),
}


def power(exponent: int, zero_point: int, low: int = 0, high: int = 255) -> FixedQParamsQuantizationSpec:
    return FixedQParamsQuantizationSpec(torch.uint8, 2.0**exponent, zero_point, low, high)


def dyadic_weight(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights of which ±127 times a power of two is the largest of each channel: its scale is that power."""
    steps = torch.randint(-127, 128, shape, generator=generator)
    steps.flatten(1)[:, 0] = 127
    exponents = torch.randint(-9, -3, (shape[0], *[1] * (len(shape) - 1)), generator=generator)
    return steps * 2.0**exponents


WEIGHT = QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, 0)


class Residual(nn.Module):
    """An operator with a post-operator, maybe added to something."""

    def __init__(self, operator: nn.Module, relu: bool) -> None:
        super().__init__()
        self.operator = operator
        self.relu = relu

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.operator(x)
        y = y if other is None else y + other
        return y.relu() if self.relu else y


@st.composite
def weighted(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A linear or a convolution, and the shape of its input."""
    dimensions = draw(st.integers(0, 3))
    bias = draw(st.booleans())
    if dimensions == 0:
        batch = draw(st.lists(st.integers(0, 3), max_size=2))
        size_in, size_out = draw(st.integers(1, 9)), draw(st.integers(1, 5))
        return nn.Linear(size_in, size_out, bias=bias), (*batch, size_in)
    groups = draw(st.integers(1, 3))
    sizes = [st.integers(1, 3)] * dimensions
    kernel, stride, dilation = (draw(st.tuples(*sizes)) for _ in range(3))
    padding = draw(st.tuples(*[st.integers(0, 2)] * dimensions))
    extent = [d * (k - 1) + draw(st.integers(1, 3)) for d, k in zip(dilation, kernel, strict=True)]
    module = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride,
        padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    return module, (draw(st.integers(0, 2)), module.in_channels, *extent)


@settings(max_examples=60)
@given(
    case=weighted(),
    relu=st.booleans(),
    adds=st.booleans(),
    numbers=st.tuples(st.integers(0, 255), st.integers(0, 99)),
)
def test_powers_of_two_are_exact(
    case: tuple[nn.Module, tuple[int, ...]],
    relu: bool,
    adds: bool,
    *,
    numbers: tuple[int, int],
    make_forms: Any,
) -> None:
    operator, shape = case
    zero_point, seed = numbers
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        operator.weight.copy_(dyadic_weight(tuple(operator.weight.shape), generator))
        if operator.bias is not None:
            scales = operator.weight.abs().flatten(1).amax(1) / 127
            steps = torch.randint(-5000, 5000, scales.shape, generator=generator)
            operator.bias.copy_(steps * scales * 2.0**-5)
    # Multiples of half a step: many lie between two integers.
    x = torch.randint(-300, 300, shape, generator=generator) * 2.0**-6
    inputs = [x]
    if adds:
        with torch.no_grad():
            result = operator(x).shape
        inputs.append(torch.randint(-300, 300, result, generator=generator) * 2.0**-6)
    forms = make_forms(
        Residual(operator, relu),
        *inputs,
        activation=power(-5, zero_point),
        weight=WEIGHT,
        output=power(-2, 100),
    )
    assert forms.float_operators() == []
    assert forms.steps_apart(*inputs) == 0
    for node, (target, dtype, *arguments), value in forms.accumulators(*inputs):
        assert value.dtype is dtype
        assert not any(isinstance(a, Tensor) and a.is_floating_point() for a in arguments), node
        assert torch.equal(value.long(), EXACT[target](*arguments))


@pytest.mark.parametrize("function", [torch.add, torch.mul, lambda x, y: (x + y).relu()])
@settings(max_examples=25)
@given(
    exponents=st.tuples(*[st.integers(-6, 2)] * 3),
    zeros=st.tuples(*[st.integers(0, 255)] * 3),
    seed=st.integers(0, 99),
)
def test_powers_of_two_are_exact_element_by_element(
    function: Any, exponents: tuple[int, ...], zeros: tuple[int, ...], seed: int, make_forms: Any
) -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return function(x, y)

    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(-999, 999, (60,), generator=generator) / 8 for _ in range(2))
    first, second, out = (power(e, z) for e, z in zip(exponents, zeros, strict=True))
    forms = make_forms(Both(), x, y, activation=first, other=second, output=out)
    assert forms.float_operators() == []
    assert forms.steps_apart(x, y) == 0


def test_a_sum_too_long_for_32_bits_is_accumulated_in_64(make_forms: Any, specs: Any) -> None:
    # 255 · 128 · 70,000 products, all of one sign, are more than 2^31.
    linear = nn.Linear(70_000, 1, bias=False)
    with torch.no_grad():
        linear.weight.fill_(-1.0)
        linear.weight[0, 0] = 1.0
    x = torch.full((1, 70_000), 2.0)
    x[0, 0] = 0.0
    forms = make_forms(linear, x, activation=specs.activation(torch.uint8, 0, 255))
    ((node, (_, dtype, a, b), value),) = forms.accumulators(x)
    assert dtype is torch.int64
    assert value.item() == (a.long() @ b.long().T).item() < -(2**31)
    assert forms.steps_apart(x) <= 1.001
    assert node.target is torch.ops.higher_order.out_dtype
