"""Intel GPUs: what is lowered to which call, and that the calls mean what the graph meant.

There is no such device where these tests usually run, so the calls are carried out by their definition, on
the arguments they were given; the last test runs them where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    Decision,
    HistogramObserver,
    Quantizer,
    XPUInductorQuantizer,
    convert_pt2e,
    get_default_x86_inductor_quantization_config,
    get_default_xpu_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.errors import UnsupportedError
from torch import Tensor, nn
from torch.fx import GraphModule

QCONV = "onednn.qconv_pointwise.default"
QCONV_ADD = "onednn.qconv2d_pointwise.binary"
QLINEAR = "onednn.qlinear_pointwise.default"


class Flow(Protocol):
    converted: GraphModule
    lowered: GraphModule

    def targets(self) -> list[str]: ...
    def decision(self, node: str) -> Decision: ...


class RunFlow(Protocol):
    def __call__(self, model: nn.Module, *inputs: Any, quantizer: Quantizer, pack_weights: bool) -> Flow: ...


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def default(**preset: bool) -> XPUInductorQuantizer:
    return XPUInductorQuantizer().set_global(get_default_xpu_inductor_quantization_config(**preset))


Means = Callable[..., None]


@pytest.fixture
def same(by_definition: Callable[..., Tensor]) -> Means:
    def check(flow: Flow, *inputs: Tensor) -> None:
        with torch.no_grad():
            expected = flow.converted(*inputs)
            actual = by_definition(flow.lowered, *inputs)
            # Shapes and dtypes as the kernels themselves report them.
            traced = torch.export.export(flow.lowered, inputs).graph.output_node().args[0][0].meta["val"]
        assert torch.equal(actual, expected)
        assert (traced.shape, traced.dtype) == (expected.shape, expected.dtype)

    return check


# Operators.


class Model(nn.Module):
    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.strided = nn.Conv2d(3, 6, 3, stride=(2, 1), dilation=(1, 2), groups=3, bias=False)
        self.square = nn.Linear(8, 8)
        self.linear = nn.Linear(8, 5)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


X = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        (lambda m, x: m.stem(x), [QCONV]),
        (lambda m, x: m.strided(x), [QCONV]),
        (lambda m, x: F.relu(m.conv(F.relu(m.stem(x)))), [QCONV, QCONV]),
        (lambda m, x: F.hardtanh(m.conv(F.relu6(m.stem(x)))), [QCONV, QCONV]),
        (lambda m, x: F.silu(m.conv(F.hardswish(m.stem(x)))), [QCONV, QCONV]),
        (lambda m, x: m.conv(m.conv(y := m.stem(x)) + m.conv(y * 1)), [QCONV, QCONV, QCONV_ADD, QCONV]),
        (
            lambda m, x: m.conv(F.relu(m.conv(F.relu(y := m.stem(x))) + y)),
            [QCONV, QCONV_ADD, QCONV],
        ),
        (lambda m, x: m.linear(m.stem(x)), [QCONV, QLINEAR]),
        (lambda m, x: F.relu(m.linear(x.mean(1))), [QLINEAR]),
        (lambda m, x: torch.tanh(m.linear(F.leaky_relu(m.square(x)))), [QLINEAR, QLINEAR]),
        (lambda m, x: m.linear(torch.flatten(m.conv(m.stem(x)), 2, 2)), [QCONV, QCONV, QLINEAR]),
    ],
    ids=[
        "conv", "grouped", "relu", "relu6 and hardtanh", "hardswish and silu", "add", "add and relu",
        "linear", "linear and relu", "tanh and leaky_relu", "flatten",
    ],
)  # fmt: skip
@pytest.mark.parametrize("reduce_range", [False, True])
def test_calls_mean_what_the_graph_means(
    run_flow: RunFlow,
    same: Means,
    body: Callable[..., Tensor],
    calls: list[str],
    reduce_range: bool,
) -> None:
    flow = run_flow(Model(body), X, quantizer=default(reduce_range=reduce_range), pack_weights=False)
    assert sorted(t for t in flow.targets() if "wise" in t) == sorted(calls)
    same(flow, X)


def test_max_pooling_stays_float(run_flow: RunFlow, same: Means) -> None:
    model = Model(lambda m, x: m.conv(F.max_pool2d(F.relu(m.stem(x)), 2)))
    flow = run_flow(model, X, quantizer=default(), pack_weights=False)
    decision = flow.decision("max_pool2d")
    assert (decision.status, decision.reason) == ("float", "no-int8-kernel")
    assert decision.detail == "Intel GPUs have no int8 max_pool2d"
    (pool,) = flow.lowered.graph.find_nodes(op="call_function", target=torch.ops.aten.max_pool2d.default)
    # Nothing is quantized on its way in.
    assert str(pool.args[0].target) == QCONV
    assert pool.args[0].args[13] is torch.float32
    same(flow, X)


def test_means_are_left_to_the_compiler_between_8_bit_values(run_flow: RunFlow, same: Means) -> None:
    model = Model(lambda m, x: m.linear(F.adaptive_avg_pool2d(m.stem(x), 1).flatten(1)))
    flow = run_flow(model, X, quantizer=default(), pack_weights=False)
    assert flow.decision("adaptive_avg_pool2d").status == "quantized"
    same(flow, X)


def test_uint8_activations_are_not_what_these_gpus_take(run_flow: RunFlow) -> None:
    quantizer = XPUInductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    flow = run_flow(Model(lambda m, x: m.stem(x)), X, quantizer=quantizer, pack_weights=False)
    assert flow.decision("conv2d").reason == "activation-not-int8"
    assert QCONV not in flow.targets()


# The quantizer.


def test_the_preset() -> None:
    config = get_default_xpu_inductor_quantization_config()
    activation, weight = config.input_activation, config.weight
    assert activation is not None
    assert weight is not None
    assert (activation.dtype, activation.quant_min, activation.quant_max) == (torch.int8, -128, 127)
    assert activation.qscheme is torch.per_tensor_affine
    observer = activation.observer_or_fake_quant_ctr()
    assert type(observer) is HistogramObserver
    assert observer.eps == 2**-12
    assert (weight.dtype, weight.quant_min, weight.quant_max) == (torch.int8, -128, 127)
    assert (weight.qscheme, weight.ch_axis) == (torch.per_channel_symmetric, 0)
    assert config.bias is None
    reduced = get_default_xpu_inductor_quantization_config(reduce_range=True).input_activation
    assert reduced is not None
    assert (reduced.quant_min, reduced.quant_max) == (-64, 63)


@pytest.mark.parametrize("mode", ["is_qat", "is_dynamic"])
def test_static_only(mode: str) -> None:
    with pytest.raises(UnsupportedError, match="static preset"):
        get_default_xpu_inductor_quantization_config(**{mode: True})


def test_parts_can_be_left_float(run_flow: RunFlow) -> None:
    model = Model(lambda m, x: m.linear(m.conv(m.stem(x))))
    quantizer = default().set_module_name_qconfig("stem", None).set_module_type_qconfig(nn.Linear, None)
    flow = run_flow(model, X, quantizer=quantizer, pack_weights=False)
    reasons = [flow.decision(name).reason for name in ("conv2d", "conv2d_1", "linear")]
    assert reasons == ["not-configured", "conv2d", "not-configured"]
    quantizer = default().set_function_type_qconfig(F.conv2d, None)
    flow = run_flow(model, X, quantizer=quantizer, pack_weights=False)
    assert [t for t in flow.targets() if "wise" in t] == [QLINEAR]


@pytest.mark.xpu
@pytest.mark.skipif(not torch.xpu.is_available(), reason="no Intel GPU")
def test_on_the_device() -> None:
    model = Model(lambda m, x: m.linear(F.relu(m.conv(y := F.relu(m.stem(x))) + y)))
    x = X.to("xpu")
    exported = torch.export.export(model.eval().to("xpu"), (x,)).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, default())
    prepared(x)
    converted = convert_pt2e(prepared)
    lowered = lower_pt2e(converted)
    with torch.no_grad():
        expected = converted(x)
        for run in (lowered, torch.compile(lowered)):
            assert (run(x) - expected).abs().max() < 0.02 * expected.abs().max()
