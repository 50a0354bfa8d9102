"""Arm CPUs: the presets, and which calls a model is lowered to. What each pattern does, the kit looks at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    ArmInductorQuantizer,
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PlaceholderObserver,
    X86InductorQuantizer,
    XPUInductorQuantizer,
    get_default_arm_inductor_quantization_config,
    get_default_x86_inductor_quantization_config,
    get_default_xpu_inductor_quantization_config,
)
from lowbit.ir.observers import create_fake_quantize, create_observer
from torch import Tensor, nn


@pytest.mark.parametrize(
    ("is_qat", "is_dynamic", "kinds"),
    [
        (False, False, (HistogramObserver, MinMaxObserver)),
        (False, True, (PlaceholderObserver, MinMaxObserver)),
        (True, False, (FusedMovingAvgObsFakeQuantize, FusedMovingAvgObsFakeQuantize)),
        (True, True, (FakeQuantize, FusedMovingAvgObsFakeQuantize)),
    ],
)
def test_presets(is_qat: bool, is_dynamic: bool, kinds: tuple[type, type]) -> None:
    config = get_default_arm_inductor_quantization_config(is_qat, is_dynamic)
    activation, weight = config.input_activation, config.weight
    assert activation is not None
    assert weight is not None
    assert (activation.dtype, activation.quant_min, activation.quant_max) == (torch.int8, -128, 127)
    assert (activation.qscheme, activation.is_dynamic) == (torch.per_tensor_affine, is_dynamic)
    assert (weight.dtype, weight.quant_min, weight.quant_max) == (torch.int8, -128, 127)
    assert (weight.qscheme, weight.ch_axis) == (torch.per_tensor_symmetric, None)
    assert (config.output_activation is None, config.bias, config.is_qat) == (is_dynamic, None, is_qat)
    if is_qat:
        made = [create_fake_quantize(spec, derived_from=(), shape=None) for spec in (activation, weight)]
        assert type(made[1].activation_post_process) is MovingAverageMinMaxObserver
    else:
        made = [create_observer(spec) for spec in (activation, weight)]
    assert tuple(map(type, made)) == kinds


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.stem(x)), 2)
        y = F.relu(self.conv(F.relu(self.conv(y))) + y)
        return self.head(y.mean((2, 3)))


X = torch.randn(2, 3, 8, 8)


def arm(**preset: bool) -> ArmInductorQuantizer:
    return ArmInductorQuantizer().set_global(get_default_arm_inductor_quantization_config(**preset))


def test_a_model_is_lowered_to_the_calls_of_x86(run_flow: Any, by_definition: Any) -> None:
    torch.manual_seed(0)
    flow = run_flow(Net(), X, quantizer=arm(), pack_weights=False)
    called = [t for t in flow.targets() if t.startswith("onednn") and "prepack" not in t]
    assert called == [
        "onednn.qconv_pointwise.default",
        "onednn.qconv_pointwise.default",
        "onednn.qconv2d_pointwise.binary",
        "onednn.qlinear_pointwise.default",
    ]
    assert flow.decision("max_pool2d").detail == "runs as integer operator"
    with torch.no_grad():
        assert torch.equal(by_definition(flow.lowered, X), flow.converted(X))


def test_ranges_that_are_found_at_run_time(run_flow: Any) -> None:
    flow = run_flow(Net(), X, quantizer=arm(is_dynamic=True), pack_weights=False)
    assert "onednn.qlinear_pointwise.tensor" in flow.targets()
    assert flow.decision("conv2d").reason == "static-only"


UINT8 = get_default_x86_inductor_quantization_config()
PER_CHANNEL = get_default_xpu_inductor_quantization_config()


@pytest.mark.parametrize(
    ("quantizer", "reason"),
    [
        (X86InductorQuantizer().set_global(UINT8), "activation-not-int8"),
        (XPUInductorQuantizer().set_global(PER_CHANNEL), "weight-not-int8-per-tensor"),
    ],
)
def test_what_others_prepared_is_not_what_arm_takes(run_flow: Any, quantizer: Any, reason: str) -> None:
    flow = run_flow(Net(), X, quantizer=quantizer, backend="arm_inductor", pack_weights=False)
    assert flow.decision("linear").reason == reason


def test_parts_can_be_left_float(run_flow: Any) -> None:
    quantizer = arm().set_module_name_qconfig("stem", None).set_function_type_qconfig(F.linear, None)
    flow = run_flow(Net(), X, quantizer=quantizer, pack_weights=False)
    assert flow.decision("conv2d").reason == flow.decision("linear").reason == "not-configured"
    assert flow.decision("conv2d_1").status == "quantized"
