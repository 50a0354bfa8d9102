"""From a model to what XNNPACK's partitioner takes: dequantize → operator → quantize throughout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    XNNPACKQuantizer,
    convert_pt2e,
    decisions,
    get_symmetric_quantization_config,
    lower_pt2e,
    move_exported_model_to_eval,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.errors import UnsupportedError
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
COMPUTE = (
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv_transpose2d.input,
    _aten.linear.default,
    _aten.add.Tensor,
    _aten.mul.Tensor,
)
CLAMPS = (_aten.relu.default, _aten.relu6.default, _aten.hardtanh.default)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    """One of everything that XNNPACK runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.row = nn.Conv1d(16, 4, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.stem(x)))
        y = F.relu(F.relu6(self.depthwise(y)) + y)
        z = self.up(F.max_pool2d(y, 2))
        y = torch.cat([y, y * z], 1)
        y = F.adaptive_avg_pool2d(y[:, :, :, 2:], 1) * y
        y = F.hardtanh(self.row(y.permute(0, 2, 1, 3).reshape(-1, 16, 8)))
        return F.log_softmax(self.head(y.flatten().view(-1, 24)), 1)


X = torch.randn(2, 3, 8, 8)


def export(model: nn.Module, *inputs: Tensor) -> GraphModule:
    exported = torch.export.export(model, inputs).module()
    assert isinstance(exported, GraphModule)
    return exported


def convert(**preset: Any) -> GraphModule:
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**preset))
    prepared = prepare_pt2e(export(Net().eval(), X), quantizer)
    prepared(X)
    return convert_pt2e(prepared)


def calls(model: GraphModule, *targets: Any) -> list[Node]:
    return [node for node in model.graph.nodes if node.op == "call_function" and node.target in targets]


@pytest.mark.parametrize("is_per_channel", [False, True])
def test_every_operator_stands_between_dequantize_and_quantize(is_per_channel: bool) -> None:
    converted = convert(is_per_channel=is_per_channel)
    quantized = {d.node for d in decisions(converted) if d.status == "quantized"}
    operators = [node for node in converted.graph.nodes if node.name in quantized]
    assert {d.node for d in decisions(converted)} - quantized == {"log_softmax"}
    assert len(operators) == len(quantized) == 20
    for node in operators:
        biases = [n for n in node.all_input_nodes if n.op == "get_attr"]
        assert all(str(n.target).endswith("bias") for n in biases)
        (user,) = node.users
        if user.target in CLAMPS and node.target in COMPUTE:
            continue
        assert qd.is_quantize(user)
        assert user.args[3:] == (-128, 127, torch.int8)
        sources = [n for n in node.all_input_nodes if n not in biases]
        # A fused clamp reads what it is fused into.
        assert all(map(qd.is_dequantize, sources)) or sources[0].target in COMPUTE


def test_a_tensor_is_quantized_once_and_what_moves_values_keeps_its_scale() -> None:
    converted = convert()
    sources = [node.args[0] for node in converted.graph.nodes if qd.is_quantize(node)]
    assert len(sources) == len(set(sources))
    keeps = (
        _aten.max_pool2d.default,
        _aten.adaptive_avg_pool2d.default,
        _aten.cat.default,
        _aten.permute.default,
        _aten.reshape.default,
        _aten.slice.Tensor,
        _aten.flatten.using_ints,
        _aten.view.default,
    )
    followers = calls(converted, *keeps)
    assert {node.target for node in followers} == set(keeps)
    for node in followers:
        parameters = {n.args[1:] for n in (*node.all_input_nodes, *node.users)}
        assert len(parameters) == 1


@pytest.mark.parametrize("is_per_channel", [False, True])
def test_weights_are_stored_as_int8(is_per_channel: bool) -> None:
    converted = convert(is_per_channel=is_per_channel)
    weights = [t for name, t in converted.state_dict().items() if t.dtype is torch.int8]
    assert len(weights) == 5
    target = qd.DEQUANTIZE_PER_CHANNEL if is_per_channel else qd.DEQUANTIZE_PER_TENSOR
    dequantized = [n for n in calls(converted, target) if n.args[0].op == "get_attr"]
    assert len(dequantized) == 5
    axes = [node.args[3] for node in dequantized] if is_per_channel else []
    assert sorted(axes) == ([0, 0, 0, 0, 1] if is_per_channel else [])
    float_model = export(Net().eval(), X)
    assert sum(t.nbytes for t in converted.state_dict().values()) < 0.45 * sum(
        t.nbytes for t in float_model.state_dict().values()
    )


@pytest.mark.parametrize(
    "preset", [{}, {"is_per_channel": True}, {"is_per_channel": True, "is_dynamic": True}]
)
def test_values_stay_close(preset: dict[str, Any]) -> None:
    model = Net().eval()
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**preset))
    prepared = prepare_pt2e(export(model, X), quantizer)
    with torch.no_grad():
        prepared(X)
        difference = convert_pt2e(prepared)(X) - model(X)
    # A step of the logits is below 0.01.
    assert 0 < float(difference.abs().max()) < 0.03


def test_dynamic_finds_the_range_of_each_input() -> None:
    converted = convert(is_dynamic=True, is_per_channel=True)
    (linear,) = calls(converted, _aten.linear.default)
    x, weight, _ = linear.all_input_nodes
    assert x.target is qd.DEQUANTIZE_PER_TENSOR_DYNAMIC
    assert weight.target is qd.DEQUANTIZE_PER_CHANNEL
    assert len(calls(converted, qd.CHOOSE_QPARAMS)) == 1
    assert not any(node.target is qd.QUANTIZE_PER_TENSOR for node in converted.graph.nodes)


def test_lowering_says_who_does_it() -> None:
    converted = convert()
    for backend in (None, "xnnpack"):
        with pytest.raises(UnsupportedError, match=r"(?s)not lowered here.*XnnpackPartitioner"):
            lower_pt2e(converted, backend)


@pytest.mark.parametrize("is_per_channel", [False, True])
def test_training(is_per_channel: bool) -> None:
    config = get_symmetric_quantization_config(is_per_channel=is_per_channel, is_qat=True)
    prepared = prepare_qat_pt2e(export(Net().train(), X), XNNPACKQuantizer().set_global(config))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.nll_loss(prepared(X), torch.arange(16) % 5)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    move_exported_model_to_eval(prepared)
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        assert torch.equal(converted(X), prepared(X))
    assert not calls(converted, _aten.batch_norm.default)
    # As after post-training quantization.
    ours, theirs = (
        {n.target for n in m.graph.nodes} for m in (converted, convert(is_per_channel=is_per_channel))
    )
    assert {t for t in ours if not isinstance(t, str)} == {t for t in theirs if not isinstance(t, str)}
