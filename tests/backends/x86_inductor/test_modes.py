"""The other modes: ranges found at run time, weights alone, int8 with bfloat16; and more shapes.

Numbers are those of the Q/DQ graph: exactly its integers, and float sums in another order.
"""

from __future__ import annotations

from typing import Any, Protocol

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    MinMaxObserver,
    QuantizationConfig,
    QuantizationSpec,
    X86InductorQuantizer,
    decisions,
    get_default_x86_inductor_quantization_config,
    get_x86_inductor_linear_dynamic_fp16_config,
    get_x86_inductor_linear_weight_only_config,
    lower_pt2e,
)
from lowbit.backends.x86_inductor import X86_INDUCTOR, float_linear, has_vnni, requantize
from lowbit.ir import quantized_decomposed as qd
from lowbit.passes import PropagateBf16
from torch import Tensor, nn
from torch.fx import GraphModule

ROUNDING = 1e-6
QCONV = "onednn.qconv_pointwise.default"
QLINEAR, QLINEAR_DYNAMIC = "onednn.qlinear_pointwise.default", "onednn.qlinear_pointwise.tensor"
QLINEAR_ADD = "onednn.qlinear_pointwise.binary"


class Flow(Protocol):
    inputs: tuple[Any, ...]
    converted: GraphModule
    lowered: GraphModule

    def targets(self) -> list[str]: ...
    def decision(self, node: str) -> Any: ...
    def difference(self, *inputs: Any) -> float: ...


class RunFlow(Protocol):
    def __call__(self, model: nn.Module, *inputs: Any, **options: Any) -> Flow: ...


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def configured(config: QuantizationConfig) -> X86InductorQuantizer:
    return X86InductorQuantizer().set_global(config)


def static(**options: Any) -> QuantizationConfig:
    return get_default_x86_inductor_quantization_config(reduce_range=not has_vnni(), **options)


class Mlp(nn.Module):
    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, 16), nn.Linear(16, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x))) + x


# Ranges found at run time.


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 1, 3, 8)])
def test_dynamic_linears_of_any_rank(shape: tuple[int, ...], run_flow: RunFlow) -> None:
    x = torch.randn(shape)
    flow = run_flow(Mlp(), x, quantizer=configured(static(is_dynamic=True)))
    assert flow.targets().count(QLINEAR_DYNAMIC) == 2
    assert flow.targets().count(str(qd.CHOOSE_QPARAMS)) == 2
    assert {d.node: d.reason for d in decisions(flow.lowered)} == {
        "linear": "linear-gelu",
        "gelu": "linear-gelu",
        "linear_1": "linear",
        "add": "static-only",
    }
    # Ranges are those of the input, whatever calibration saw.
    for factor in (1.0, 1e-3, 100.0):
        assert flow.difference(factor * x) < 1e-5


def test_dynamic_quantization_is_for_linears(run_flow: RunFlow) -> None:
    class ConvLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x).mean((2, 3)))

    flow = run_flow(ConvLinear(), torch.randn(2, 3, 6, 6), quantizer=configured(static(is_dynamic=True)))
    assert flow.decision("conv2d").reason == "static-only"
    assert flow.decision("linear").kernel == "onednn.qlinear_pointwise"


def test_dynamic_shapes_and_ranges(run_flow: RunFlow) -> None:
    batch = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    flow = run_flow(
        Mlp(), torch.randn(2, 3, 8), quantizer=configured(static(is_dynamic=True)), dynamic_shapes=(batch,)
    )
    for sizes in ((2, 3), (1, 7), (5, 1)):
        assert flow.difference(torch.randn(*sizes, 8)) < 1e-5


def test_dynamic_compiles(run_flow: RunFlow) -> None:
    flow = run_flow(Mlp(), torch.randn(2, 3, 8), quantizer=configured(static(is_dynamic=True)))
    torch._dynamo.reset()
    with torch.no_grad():
        expected, actual = flow.lowered(*flow.inputs), torch.compile(flow.lowered)(*flow.inputs)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


# Weights alone.


def test_int8_weights_alone(run_flow: RunFlow) -> None:
    quantizer = configured(get_x86_inductor_linear_weight_only_config())
    flow = run_flow(Mlp(64), torch.randn(3, 64), quantizer=quantizer)
    assert {n: t.dtype for n, t in flow.converted.state_dict().items() if "int8" in n} == dict.fromkeys(
        ("up.weight_int8", "down.weight_int8"), torch.int8
    )
    assert flow.decision("linear").reason == "kernel-slower-than-float"
    assert flow.difference() == 0


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64)])
def test_int8_weights_alone_of_bfloat16_activations(shape: tuple[int, ...], run_flow: RunFlow) -> None:
    quantizer = configured(get_x86_inductor_linear_weight_only_config())
    flow = run_flow(Mlp(64).bfloat16(), torch.randn(shape, dtype=torch.bfloat16), quantizer=quantizer)
    assert flow.targets().count("aten._weight_int8pack_mm.default") == 2
    # The graph rounds the weight to bfloat16 first, the kernel does not.
    assert flow.difference() < 0.02


def test_of_many_rows_the_weight_is_dequantized(run_flow: RunFlow) -> None:
    quantizer = configured(get_x86_inductor_linear_weight_only_config())
    flow = run_flow(Mlp(64).bfloat16(), torch.randn(17, 64, dtype=torch.bfloat16), quantizer=quantizer)
    assert "of more than 16 rows; tried " in flow.decision("linear").detail
    assert flow.difference() == 0


def test_float16_weights(run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = configured(get_x86_inductor_linear_dynamic_fp16_config())
    monkeypatch.setattr(float_linear, "has_float16", lambda: False)
    flow = run_flow(Mlp(), torch.randn(3, 8), quantizer=quantizer)
    casts = flow.converted.graph.find_nodes(op="call_function", target=qd.CONVERT_ELEMENT_TYPE)
    assert [n.args[1] for n in casts][-1] is torch.float32
    assert flow.decision("linear").reason == "no-float16-arithmetic"
    assert flow.difference() == 0
    # The kernel is right on every CPU; where it is slow it is not chosen.
    monkeypatch.setattr(float_linear, "has_float16", lambda: True)
    lowered = lower_pt2e(flow.converted)
    assert {d.node: d.kernel for d in decisions(lowered) if d.intended} == {
        "linear": "onednn.linear_dynamic_fp16",
        "linear_1": "onednn.linear_dynamic_fp16",
    }
    with torch.no_grad():
        expected, actual = flow.converted(*flow.inputs), lowered(*flow.inputs)
    assert (actual - expected).abs().max() < 2e-3 * expected.abs().max()


# int8 with bfloat16.


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(self.other(F.relu(self.conv(x))), (6, 6))
        return torch.sigmoid(self.linear(y.mean((2, 3))))


@pytest.mark.usefixtures("linears_stay")
def test_results_that_stay_float_come_in_bfloat16_from_the_kernel(
    run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requantize, "writes_bfloat16", lambda: True)
    flow = run_flow(Mixed(), torch.randn(2, 3, 8, 8))
    pipeline = X86_INDUCTOR.lower
    assert pipeline is not None
    lowered = lower_pt2e(flow.converted, pipeline=pipeline.before("emit-inductor", PropagateBf16()))
    kernels = [n for n in lowered.graph.nodes if "pointwise" in str(n.target)]
    assert [n.args[13 if "conv" in str(n.target) else 9] for n in kernels] == [
        torch.uint8,
        torch.bfloat16,
        torch.bfloat16,
    ]
    with torch.no_grad():
        for node, value in run_all(lowered, *flow.inputs).items():
            if node.startswith(("qconv", "qlinear", "layer_norm", "mean")) and value.is_floating_point():
                assert value.dtype is torch.bfloat16
        result = lowered(*flow.inputs)
        assert result.dtype is torch.float32
        assert (result - flow.converted(*flow.inputs)).abs().max() < 0.02
        # The tutorial's way, by torch.autocast at run time, means the same.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tutorial = flow.converted(*flow.inputs)
    assert tutorial.dtype is torch.bfloat16
    assert (result - tutorial).abs().max() < 0.02


def test_cpus_whose_kernels_write_no_bfloat16(run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler rounds what they write in float32, with the same result."""
    flow = run_flow(Mixed(), torch.randn(2, 3, 8, 8))
    pipeline = X86_INDUCTOR.lower.before("emit-inductor", PropagateBf16()).without("linears-to-convolutions")
    lowered = {}
    for writes in (True, False):
        monkeypatch.setattr(requantize, "writes_bfloat16", lambda writes=writes: writes)
        lowered[writes] = lower_pt2e(flow.converted, pipeline=pipeline)
    assert not [
        n for n in lowered[False].graph.nodes if "pointwise" in str(n.target) and torch.bfloat16 in n.args
    ]
    written, rounded = (run_all(lowered[writes], *flow.inputs) for writes in (True, False))
    for name, value in written.items():
        if name.startswith("layer_norm"):
            assert torch.equal(rounded[name], value)
            assert value.dtype is torch.bfloat16
    with torch.no_grad():
        results = [lowered[writes](*flow.inputs) for writes in (True, False)]
        assert results[0].dtype is results[1].dtype
        # Of linears the reference code rounds a bias of bfloat16 elsewhere.
        torch.testing.assert_close(*results, rtol=0, atol=0.004)
        torch.testing.assert_close(
            torch.compile(lowered[False])(*flow.inputs), results[1], rtol=0, atol=0.004
        )


def run_all(model: GraphModule, *inputs: Tensor) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}

    class Keeps(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            values[n.name] = result = super().run_node(n)
            return result

    Keeps(model).run(*inputs)
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@pytest.mark.usefixtures("linears_stay")
def test_models_in_bfloat16(run_flow: RunFlow) -> None:
    flow = run_flow(Mixed().bfloat16(), torch.randn(2, 3, 8, 8).bfloat16())
    assert flow.targets().count(QCONV) == 2
    assert flow.targets().count(QLINEAR) == 1
    assert flow.difference() < 0.02


# Other shapes and scales.


class Convs(nn.Module):
    def __init__(self, kind: type[nn.Conv1d | nn.Conv3d]) -> None:
        super().__init__()
        self.a, self.b = kind(3, 8, 3), kind(8, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


@pytest.mark.parametrize(("kind", "extent"), [(nn.Conv1d, (9,)), (nn.Conv3d, (6, 5, 7))])
def test_convolutions_of_one_and_three_dimensions(
    kind: type[nn.Conv1d | nn.Conv3d], extent: tuple[int, ...], run_flow: RunFlow
) -> None:
    batch = {0: torch.export.Dim.DYNAMIC}
    flow = run_flow(Convs(kind), torch.randn(2, 3, *extent), dynamic_shapes=(batch,))
    assert flow.targets().count(QCONV) == 2
    # Behind three dimensions no kernel applies anything.
    assert flow.decision("relu").status == ("quantized" if kind is nn.Conv1d else "float")
    for size in (0, 1, 2, 5):
        x = torch.randn(size, 3, *extent)
        with torch.no_grad():
            assert flow.lowered(x).shape == flow.converted(x).shape
        if size:
            assert flow.difference(x) < ROUNDING


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        y = F.relu(self.a(x) + other)
        return self.c(other + self.b(y))


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (0, 8)])
def test_linear_and_what_is_added(shape: tuple[int, ...], run_flow: RunFlow) -> None:
    x, other = torch.randn(*shape), torch.randn(*shape)
    dims = [{i: torch.export.Dim.DYNAMIC for i in range(len(shape) - 1) if shape[i]}] * 2
    if 0 in shape:
        x, other = torch.randn(3, 8), torch.randn(3, 8)
        dims = [{0: torch.export.Dim.DYNAMIC}] * 2
    flow = run_flow(Residual(), x, other, dynamic_shapes=tuple(dims))
    assert flow.targets().count(QLINEAR_ADD) == 2
    if 0 in shape:
        with torch.no_grad():
            assert flow.lowered(torch.randn(shape), torch.randn(shape)).shape == (0, 4)
        return
    assert flow.difference() < ROUNDING
    if len(shape) > 1:
        # Not dense, which the kernel does not ask about.
        strided = torch.randn(*shape[:-2], 8, shape[-2]).transpose(-1, -2)
        assert flow.difference(x, strided) < ROUNDING


@pytest.mark.usefixtures("linears_stay")
def test_one_scale_a_weight(run_flow: RunFlow) -> None:
    config = static()
    assert config.weight is not None
    per_tensor = QuantizationSpec(
        torch.int8, MinMaxObserver.with_args(eps=2**-12), -128, 127, torch.per_tensor_symmetric
    )
    flow = run_flow(
        Mixed(), torch.randn(2, 3, 8, 8), quantizer=configured(attrs.evolve(config, weight=per_tensor))
    )
    assert flow.targets().count(QCONV) == 2
    assert flow.targets().count(QLINEAR) == 1
    scales = flow.lowered.get_buffer("conv.weight_int8_scales")
    assert scales.shape == (8,)
    assert len(scales.unique()) == 1
    assert flow.difference() < 1e-5


# What has no int8 kernel says why.


def test_two_activations_and_pointwise_operators_stay_float(run_flow: RunFlow) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            scores = torch.matmul(self.q(x), self.k(x).transpose(1, 2))
            y = F.scaled_dot_product_attention(x, x, x) * torch.sigmoid(x)
            return torch.bmm(torch.softmax(scores, -1), y)

    flow = run_flow(Attention(), torch.randn(2, 3, 8))
    reasons = {d.node: d.reason for d in decisions(flow.lowered) if d.status == "float"}
    assert reasons == {
        "matmul": "two-activations",
        "transpose": "no-low-precision-reader",
        "scaled_dot_product_attention": "two-activations",
        "sigmoid": "pointwise",
        "mul": "pointwise",
        "softmax": "no-pattern",
        "bmm": "two-activations",
    }
    assert all(d.detail for d in decisions(flow.lowered) if d.status == "float")
