"""``XNNPACKQuantizer``: its presets, and which setting applies where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QuantizationSpec,
    XNNPACKQuantizer,
    decisions,
    get_symmetric_quantization_config,
    prepare_pt2e,
)
from lowbit.errors import NothingQuantizedWarning, SpecError, UnknownNameError
from lowbit.ir.observers import create_observer
from torch import Tensor, nn
from torch.fx import GraphModule

STATIC = get_symmetric_quantization_config()


# Presets.


def made(spec: QuantizationSpec | None) -> Any:
    assert spec is not None
    return create_observer(spec)


@pytest.mark.parametrize("is_per_channel", [False, True])
def test_post_training_presets(is_per_channel: bool) -> None:
    config = get_symmetric_quantization_config(is_per_channel=is_per_channel)
    activation, weight = made(config.input_activation), made(config.weight)
    assert config.output_activation is config.input_activation
    assert config.bias is None
    assert not config.is_qat
    assert type(activation) is HistogramObserver
    assert (activation.dtype, activation.quant_min, activation.quant_max) == (torch.int8, -128, 127)
    assert activation.qscheme is torch.per_tensor_affine
    assert activation.eps == weight.eps == 2**-12
    assert type(weight) is (PerChannelMinMaxObserver if is_per_channel else MinMaxObserver)
    assert (weight.dtype, weight.quant_min, weight.quant_max) == (torch.int8, -127, 127)
    assert weight.qscheme is (torch.per_channel_symmetric if is_per_channel else torch.per_tensor_symmetric)
    assert weight.ch_axis == (0 if is_per_channel else None)


def test_ranges_are_those_asked_for() -> None:
    config = get_symmetric_quantization_config(act_qmin=-8, act_qmax=7, weight_qmin=-4, weight_qmax=3)
    activation, weight = made(config.input_activation), made(config.weight)
    assert (activation.quant_min, activation.quant_max) == (-8, 7)
    assert (weight.quant_min, weight.quant_max) == (-4, 3)
    with pytest.raises(SpecError, match="cannot hold"):
        get_symmetric_quantization_config(act_qmax=255)


def test_the_dynamic_preset() -> None:
    config = get_symmetric_quantization_config(is_dynamic=True)
    activation = made(config.input_activation)
    assert type(activation) is PlaceholderObserver
    assert activation.is_dynamic
    assert activation.eps == 2**-12
    assert config.output_activation is None
    assert type(made(config.weight)) is MinMaxObserver


@pytest.mark.parametrize("is_per_channel", [False, True])
def test_training_presets(is_per_channel: bool) -> None:
    config = get_symmetric_quantization_config(is_per_channel=is_per_channel, is_qat=True)
    assert config.is_qat
    activation, weight = made(config.input_activation), made(config.weight)
    for fake_quantize in (activation, weight):
        assert type(fake_quantize) is FusedMovingAvgObsFakeQuantize
        assert fake_quantize.activation_post_process.eps == 2**-12
    assert type(activation.activation_post_process) is MovingAverageMinMaxObserver
    observer = MovingAveragePerChannelMinMaxObserver if is_per_channel else MovingAverageMinMaxObserver
    assert type(weight.activation_post_process) is observer


def test_the_dynamic_training_preset() -> None:
    config = get_symmetric_quantization_config(is_qat=True, is_dynamic=True)
    activation = made(config.input_activation)
    assert type(activation) is FakeQuantize
    assert activation.is_dynamic
    assert activation.activation_post_process.averaging_constant == 1
    assert config.output_activation is None


def test_equal_presets_share_observers() -> None:
    # By value: a model may be configured part by part.
    assert get_symmetric_quantization_config(True) == get_symmetric_quantization_config(is_per_channel=True)


# Selection.


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Block()
        self.second = Block()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head((self.second(y) + y).mean((2, 3)))


def quantized(quantizer: XNNPACKQuantizer) -> set[str]:
    """What of the net is quantized: the paths of layers, and ``add``."""
    exported = torch.export.export(Net().eval(), (torch.randn(1, 4, 6, 6),)).module()
    assert isinstance(exported, GraphModule)
    operators = [d for d in decisions(prepare_pt2e(exported, quantizer)) if d.status == "quantized"]
    return {d.module or d.node for d in operators if d.reason not in {"relu", "mean"}} - {"first", "second"}


ALL = {"first.conv", "second.conv", "add", "head"}


def test_global() -> None:
    assert quantized(XNNPACKQuantizer().set_global(STATIC)) == ALL
    with pytest.warns(NothingQuantizedWarning):
        assert quantized(XNNPACKQuantizer().set_global(None)) == set()


@pytest.mark.parametrize(
    ("setting", "selected"),
    [
        (lambda q, c: q.set_object_type(nn.Linear, c), {"head"}),
        (lambda q, c: q.set_object_type(Block, c), {"first.conv", "second.conv"}),
        (lambda q, c: q.set_object_type(F.linear, c), {"head"}),
        (lambda q, c: q.set_object_type(torch.ops.aten.linear.default, c), {"head"}),
        (lambda q, c: q.set_object_type(torch.conv2d, c), {"first.conv", "second.conv"}),
        (lambda q, c: q.set_operator_type(torch.ops.aten.conv2d, c), {"first.conv", "second.conv"}),
        (lambda q, c: q.set_operator_type(torch.ops.aten.add_.Tensor, c), {"add"}),
        (lambda q, c: q.set_module_type(nn.Conv2d, c), {"first.conv", "second.conv"}),
        (lambda q, c: q.set_module_name("first", c), {"first.conv"}),
        (lambda q, c: q.set_module_name("second.conv", c), {"second.conv"}),
    ],
)
def test_every_setting_selects_what_it_names_and_nothing_else(setting: Any, selected: set[str]) -> None:
    assert quantized(setting(XNNPACKQuantizer(), STATIC)) == selected
    assert quantized(setting(XNNPACKQuantizer().set_global(STATIC), None)) == ALL - selected


# That of the operator counts less than all others.
@pytest.mark.filterwarnings("ignore::lowbit.errors.IneffectiveSettingWarning")
def test_a_module_name_wins_over_a_module_type_over_an_operator() -> None:
    quantizer = XNNPACKQuantizer().set_global(STATIC).set_operator_type(torch.ops.aten.conv2d, STATIC)
    quantizer.set_module_type(Block, None)
    assert quantized(quantizer) == {"add", "head"}
    assert quantized(quantizer.set_module_name("second", STATIC)) == {"second.conv", "add", "head"}


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        (lambda q: q.set_module_name("first.convolution", STATIC), "first.conv"),
        (lambda q: q.set_module_type(nn.Conv1d, STATIC), "Conv2d"),
        (lambda q: q.set_object_type(F.conv1d, STATIC), "conv2d"),
        (lambda q: q.set_operator_type(torch.ops.aten.conv3d.default, STATIC), "conv2d"),
    ],
)
def test_a_setting_that_selects_nothing_is_an_error(setting: Any, near: str) -> None:
    with pytest.raises(UnknownNameError, match="selects no operator") as caught:
        quantized(setting(XNNPACKQuantizer().set_global(STATIC)))
    assert near in str(caught.value)


def test_modes_are_not_mixed() -> None:
    quantizer = XNNPACKQuantizer().set_global(STATIC)
    with pytest.raises(SpecError, match="dynamic PTQ configuration is mixed with a static PTQ"):
        quantizer.set_object_type(nn.Linear, get_symmetric_quantization_config(is_dynamic=True))
