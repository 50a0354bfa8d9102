"""ResNet-18 and ResNet-50 run in int8 from the first quantize to the last, however they were exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs
import pytest
import torch
from lowbit import (
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    lowering_report,
    prepare_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from lowbit.backends.x86_inductor.cpu import convolves_faster
from lowbit.ir import quantized_decomposed as qd
from lowbit.tools.models import resnet18, resnet50
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
QCONV = torch.ops.onednn.qconv_pointwise.default
QCONV_ADD = torch.ops.onednn.qconv2d_pointwise.binary
QLINEAR = torch.ops.onednn.qlinear_pointwise.default


@attrs.frozen
class Expected:
    """What a network is made of: convolutions, and of them those that a residual is added to."""

    model: Callable[[], nn.Module]
    convolutions: int
    residuals: int


NETWORKS = {
    "resnet18": Expected(resnet18, convolutions=20, residuals=8),
    "resnet50": Expected(resnet50, convolutions=53, residuals=16),
}


@attrs.frozen
class Flow:
    expected: Expected
    x: Tensor
    logits: Tensor
    converted: GraphModule
    lowered: GraphModule


def flow(expected: Expected, *, strict: bool) -> Flow:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    model = expected.model().eval()
    exported = torch.export.export(model, (x,), strict=strict).module()
    assert isinstance(exported, GraphModule)
    quantizer = X86InductorQuantizer().set_global(
        get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    )
    prepared = calibrate(prepare_pt2e(exported, quantizer), [x], progress=False)
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        return Flow(expected, x, model(x), converted, lower_pt2e(converted))


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> dict[bool, Flow]:
    """The flow of a network by whether its export was strict."""
    expected = NETWORKS[request.param]
    return {strict: flow(expected, strict=strict) for strict in (False, True)}


def calls(model: GraphModule) -> Counter[object]:
    return Counter(node.target for node in model.graph.nodes if node.op == "call_function")


def test_every_convolution_and_linear_is_an_int8_kernel(network: dict[bool, Flow]) -> None:
    for flow in network.values():
        found, expected = calls(flow.lowered), flow.expected
        assert found[QCONV_ADD] == expected.residuals
        # Without VNNI a linear may have the kernel of convolutions.
        assert found[QLINEAR] == (not convolves_faster())
        assert found[QCONV] + found[QLINEAR] == expected.convolutions - expected.residuals + 1
        left = {aten.conv2d.default, aten.linear.default, aten.add.Tensor, aten.relu.default}
        assert not left & found.keys()


def test_every_pool_runs_on_int8(network: dict[bool, Flow]) -> None:
    for flow in network.values():
        graph = flow.lowered.graph
        (max_pool,) = graph.find_nodes(op="call_function", target=torch.ops.quantized.max_pool2d.default)
        assert [node.target for node in max_pool.all_input_nodes] == [QCONV]
        # An average rounds: it stays a float operator on 8-bit values, for the compiler to fuse.
        (average,) = graph.find_nodes(op="call_function", target=aten.adaptive_avg_pool2d.default)
        (dequantize,), (quantize,) = average.all_input_nodes, average.users
        assert dequantize.target is qd.DEQUANTIZE_PER_TENSOR
        assert quantize.target is qd.QUANTIZE_PER_TENSOR
        assert dequantize.args[1:] == quantize.args[1:]
        # No other tensor is quantized at run time but the input, and none dequantized.
        assert calls(flow.lowered)[qd.QUANTIZE_PER_TENSOR] == 2
        assert calls(flow.lowered)[qd.DEQUANTIZE_PER_TENSOR] == 1
        assert calls(flow.lowered)[qd.DEQUANTIZE_PER_CHANNEL] == 0


def test_residuals_are_accumulated_in_place(network: dict[bool, Flow]) -> None:
    for flow in network.values():
        found = calls(flow.lowered)
        assert found[aten.clone.default] == 0
        assert found[aten.contiguous.default] == flow.expected.residuals


def test_strict_and_non_strict_export_give_the_same(network: dict[bool, Flow]) -> None:
    assert calls(network[True].converted) == calls(network[False].converted)
    assert calls(network[True].lowered) == calls(network[False].lowered)
    with torch.no_grad():
        x = network[True].x
        assert torch.equal(network[True].lowered(x), network[False].lowered(x))


def test_state_dict_holds_no_float_weights(network: dict[bool, Flow]) -> None:
    layers = network[True].expected.convolutions + 1
    for flow in network.values():
        for model in (flow.converted, flow.lowered):
            state = model.state_dict()
            assert not [name for name, t in state.items() if t.is_floating_point() and t.ndim > 1]
            assert sum(t.dtype is torch.int8 for t in state.values()) == layers


def test_every_float_operator_has_a_decision(network: dict[bool, Flow]) -> None:
    for flow in network.values():
        made = {d.node: d for d in decisions(flow.lowered)}
        assert all(d.status == "quantized" and d.reason and d.detail for d in made.values())
        by_pattern = Counter(d.reason for d in made.values() if d.target.startswith("aten.conv2d"))
        residuals, convolutions = flow.expected.residuals, flow.expected.convolutions
        assert by_pattern["conv2d-add-relu"] == residuals
        assert sum(by_pattern.values()) == convolutions
        floats = [n for n in flow.converted.graph.nodes if is_float_operator(n)]
        assert {n.name for n in floats} == set(made)
        report = lowering_report(flow.lowered)
        assert len(report.lowered) > convolutions
        assert report.missed == ()


def is_float_operator(node: Node) -> bool:
    return node.op == "call_function" and not qd.is_quantize(node) and not qd.is_dequantize(node)


def test_lowered_is_the_converted_network(network: dict[bool, Flow]) -> None:
    for flow in network.values():
        with torch.no_grad():
            converted, lowered = flow.converted(flow.x), flow.lowered(flow.x)
        # Roundings that part at ties are carried on by the layers behind them. With 7 bits they are twice as
        # large, which is 6 dB.
        assert sqnr(converted, lowered) > (35 if has_vnni() else 29)
        assert sqnr(flow.logits, lowered) > 15


def sqnr(signal: Tensor, other: Tensor) -> float:
    """Signal to noise, dB."""
    return float(10 * torch.log10(signal.pow(2).mean() / (signal - other).pow(2).mean()))
