"""Where no integer arithmetic is written, the float operator stays, and the ledger says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    FixedQParamsQuantizationSpec,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationSpec,
)
from torch import Tensor, nn

aten = torch.ops.aten


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(self, *x)


def test_an_operator_without_a_rule(make_forms: Any) -> None:
    x = torch.randn(3, 4)
    forms = make_forms(Calls(lambda m, x: x.tanh()), x)
    assert forms.rules == []
    decision = forms.decisions["tanh"]
    assert (decision.status, decision.reason) == ("float", "no-reference-rule")
    assert torch.equal(forms.reference(x), forms.qdq(x))


DECLINES = {
    "scaled-addition": (lambda m, x, y: torch.add(x, y, alpha=2), "add", [(3, 4), (3, 4)]),
    "windows-differ": (lambda m, x: F.adaptive_avg_pool2d(x, 2), "adaptive_avg_pool2d", [(1, 2, 5, 4)]),
    "no-reference-rule": (lambda m, x: x * 2, "mul", [(3, 4)]),
    "weight-not-quantized": (lambda m, x: F.linear(x, m.weight), "linear", [(2, 4)]),
}


@pytest.mark.parametrize("reason", DECLINES)
def test_reasons(reason: str, make_forms: Any) -> None:
    torch.manual_seed(0)
    function, name, shapes = DECLINES[reason]
    inputs = [torch.randn(shape) for shape in shapes]
    options = {"weight": None} if reason == "weight-not-quantized" else {}
    forms = make_forms(Calls(function), *inputs, **options)
    assert forms.rules == []
    decision = forms.decisions[name]
    assert (decision.status, decision.reason) == ("float", reason)
    assert torch.equal(forms.reference(*inputs), forms.qdq(*inputs))


def test_a_sum_that_is_read_in_float(make_forms: Any) -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    forms = make_forms(Calls(lambda m, x, y: x + y), x, y, output=None)
    assert forms.decisions["add"].reason == "result-read-in-float"
    assert torch.equal(forms.reference(x, y), forms.qdq(x, y))


def test_weights_with_scales_along_the_wrong_axis(make_forms: Any) -> None:
    spec = QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -128, 127, torch.per_channel_symmetric, 1)
    x = torch.randn(2, 4)
    forms = make_forms(Calls(lambda m, x: F.linear(x, m.weight)), x, weight=spec)
    assert forms.decisions["linear"].reason == "weight-not-per-output-channel"
    assert torch.equal(forms.reference(x), forms.qdq(x))


def test_a_bias_between_coarse_steps_is_added_in_float(make_forms: Any) -> None:
    """One step of the accumulator is 4 of the output: a rounded bias would be up to 2 off."""

    def power(exponent: int) -> FixedQParamsQuantizationSpec:
        return FixedQParamsQuantizationSpec(torch.uint8, 2.0**exponent, 128, 0, 255)

    model = Calls(lambda m, x: F.linear(x, m.weight, m.bias))
    with torch.no_grad():
        model.weight.copy_(torch.arange(-6.0, 6.0).view(3, 4))
        model.bias.copy_(torch.tensor([0.25, 0.5, 1.25]))
    x = torch.arange(-4.0, 4.0).view(2, 4)
    weight = FixedQParamsQuantizationSpec(torch.int8, 1.0, 0, -128, 127)
    forms = make_forms(model, x, activation=power(0), weight=weight, output=power(-2))
    assert "bias-between-steps" in forms.decisions["linear"].detail
    assert forms.rules == ["linear"]
    assert torch.equal(forms.reference(x), forms.qdq(x))


def test_a_result_read_by_two_is_scaled_to_float(make_forms: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4)

    def function(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.linear(x, m.weight, m.bias)
        return y, y.tanh()

    forms = make_forms(Calls(function), x, leave=(aten.tanh.default,), output=None)
    assert forms.rules == ["linear"]
    assert forms.decisions["linear"].status == "quantized"
    for got, want in zip(forms.reference(x), forms.qdq(x), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("qscheme", [torch.per_tensor_affine, torch.per_tensor_symmetric])
def test_dynamic_parameters_scale_an_integer_accumulator(
    qscheme: torch.qscheme, make_forms: Any, specs: Any
) -> None:
    torch.manual_seed(0)
    low, high, dtype = (
        (0, 255, torch.uint8) if qscheme is torch.per_tensor_affine else (-127, 127, torch.int8)
    )
    dynamic = QuantizationSpec(
        dtype, PlaceholderObserver.with_args(eps=2**-12), low, high, qscheme, is_dynamic=True
    )
    for weight in (specs.weight(), specs.weight(torch.per_tensor_affine)):
        model = nn.Linear(6, 3)
        x = torch.randn(4, 6)
        forms = make_forms(model, x, activation=dynamic, weight=weight, output=None)
        assert forms.rules == ["linear"]
        assert "scaled to float32" in forms.decisions["linear"].detail
        ((_, (_, dtype_of_sum, a, b), value),) = forms.accumulators(x)
        assert dtype_of_sum is torch.int32
        assert torch.equal(value.long(), a.long() @ b.long().T)
        for inputs in (x, 5 * x):
            torch.testing.assert_close(forms.reference(inputs), forms.qdq(inputs), rtol=2e-6, atol=1e-6)
