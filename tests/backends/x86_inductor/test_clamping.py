"""Ranges narrower than the dtype: kernels clamp to them, in their post-operator where that is exact."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    FixedQParamsQuantizationSpec,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)
from lowbit.backends.x86_inductor.post_operators import AFTER_CONVOLUTION, AFTER_LINEAR
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

aten, onednn = torch.ops.aten, torch.ops.onednn
KERNELS = (onednn.qconv_pointwise.default, onednn.qlinear_pointwise.default)
INPUT = QuantizationSpec(
    dtype=torch.uint8,
    quant_min=0,
    quant_max=127,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=MinMaxObserver,
)
WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
)
INF = float("inf")
Activation = Callable[[Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, kind: str, activation: Activation) -> None:
        super().__init__()
        self.weighted = nn.Conv2d(8, 16, 3) if kind == "conv2d" else nn.Linear(8, 16)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.weighted(x))


class Fixed(Quantizer):
    """Gives the result of the last operator these parameters."""

    def __init__(self, output: FixedQParamsQuantizationSpec) -> None:
        self.output = output

    def annotate(self, model: GraphModule) -> GraphModule:
        (last,) = model.graph.output_node().all_input_nodes
        for node in model.graph.nodes:
            if node.target in (aten.conv2d.default, aten.linear.default):
                specs = {node.args[0]: INPUT, node.args[1]: WEIGHT}
                output = self.output if node is last else None
                node.meta["quantization_annotation"] = QuantizationAnnotation(specs, output)
        if "quantization_annotation" not in last.meta:
            last.meta["quantization_annotation"] = QuantizationAnnotation({}, self.output)
        return model


def lowered(kind: str, activation: Activation, output: FixedQParamsQuantizationSpec) -> tuple[Any, ...]:
    """The converted and the lowered model, and inputs whose results leave most ranges at both ends."""
    torch.manual_seed(0)
    x = 8 * torch.randn((4, 8, 9, 9) if kind == "conv2d" else (200, 8))
    exported = torch.export.export(Net(kind, activation).eval(), (x,)).module()
    prepared = lowbit.calibrate(lowbit.prepare_pt2e(exported, Fixed(output)), [x], progress=False)
    converted = lowbit.convert_pt2e(prepared)
    return converted, lowbit.lower_pt2e(converted, "x86_inductor"), x


def result_spec(scale: float, zero_point: int, low: int, high: int) -> FixedQParamsQuantizationSpec:
    return FixedQParamsQuantizationSpec(
        dtype=torch.int8 if low < 0 else torch.uint8,
        scale=scale,
        zero_point=zero_point,
        quant_min=low,
        quant_max=high,
    )


def kernel_of(model: GraphModule) -> Node:
    (kernel,) = (node for node in model.graph.nodes if node.target in KERNELS)
    return kernel


def clamps(model: GraphModule) -> int:
    return len(model.graph.find_nodes(op="call_function", target=aten.clamp.default))


def quantized_behind(model: GraphModule) -> bool:
    """Whether the kernel's result is float, and quantized by an operator of its own."""
    quantizes = model.graph.find_nodes(op="call_function", target=qd.QUANTIZE_PER_TENSOR)
    is_float = kernel_of(model).args[-4] is torch.float32
    assert is_float == (len(quantizes) == 2)
    return is_float


class Unfolded(Interpreter):
    """Runs the kernel with a post-operator that does not clamp, and clamps its result."""

    def __init__(self, model: GraphModule, post: tuple[str, list[float]], bounds: tuple[int, int]) -> None:
        super().__init__(model)
        self.post, self.bounds = post, bounds

    def run_node(self, n: Node) -> Any:
        if n.target not in KERNELS:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        return n.target(*args[:-3], *self.post, "").clamp(*self.bounds)


def hardtanh(low: float, high: float) -> Activation:
    return lambda x: F.hardtanh(x, low, high)


FOLDED: dict[str, tuple[Activation, tuple[str, list[float]], tuple[float, float]]] = {
    "none": (lambda x: x, ("none", [0.0]), (-INF, INF)),
    "relu": (F.relu, ("relu", [0.0]), (0, INF)),
    "relu6": (F.relu6, ("hardtanh", [0.0, 6.0]), (0, 6)),
    "hardtanh": (hardtanh(-2.5, 3.3), ("hardtanh", [-2.5, 3.3]), (-2.5, 3.3)),
}
# Scale, zero point, range: what reduce_range gives, and what nobody would choose.
RANGES = [
    (1 / 3, 0, 0, 127),
    (0.0371, 61, 0, 127),
    (0.1, 127, 0, 127),
    (3.7e-3, 40, 0, 100),
    (0.07, -20, -100, 90),
    (11.3, 64, 0, 127),
]


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_clamp_is_a_clamp_bit_for_bit(kind: str, name: str) -> None:
    activation, post, (least, most) = FOLDED[name]
    ends_met: set[int] = set()
    for parameters in RANGES:
        converted, model, x = lowered(kind, activation, result_spec(*parameters))
        _, zero_point, low, high = parameters
        assert clamps(model) == 0
        kernel = kernel_of(model)
        scale = kernel.args[-6]  # rounded to float32 on its way
        bounds = max(least, (low - zero_point) * scale), min(most, (high - zero_point) * scale)
        assert kernel.args[-3:] == ("hardtanh", [*bounds], "")
        with torch.no_grad():
            actual, expected = model(x), Unfolded(model, post, (low, high)).run(x)
            assert torch.equal(actual, expected)
            # And to a rounding at ties, the graph itself.
            assert (actual - converted(x)).abs().max() <= 1.01 * scale
        ends_met |= {int(end) for end in ((actual / scale).round() + zero_point).aminmax()}
    assert ends_met >= {0, 127}, "nothing was clamped"


AFTER = [*itertools.product(["conv2d"], AFTER_CONVOLUTION), *itertools.product(["linear"], AFTER_LINEAR)]


@pytest.mark.parametrize(("kind", "post"), AFTER, ids=[f"{kind}-{post.name}" for kind, post in AFTER])
def test_every_post_operator_keeps_to_the_range(kind: str, post: Any) -> None:
    low, high, scale, zero_point = -90, 83, 0.031, -30
    converted, model, x = lowered(kind, post.function, result_spec(scale, zero_point, low, high))
    folds = post.name in FOLDED
    assert kernel_of(model).args[-3] == ("hardtanh" if folds else "none")
    # What does not fold is left to the compiler, with the post-operator, as the graph has it.
    assert quantized_behind(model) == (not folds)
    with torch.no_grad():
        actual, expected = model(x), converted(x)
    assert (actual - expected).abs().max() <= 1.01 * scale
    assert (actual.min(), actual.max()) == (expected.min(), expected.max())


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
@pytest.mark.parametrize(
    ("activation", "spec"),
    [
        # All that comes out is above the range, or below it: no two bounds say that.
        (hardtanh(1.0, 2.0), result_spec(0.1, 127, 0, 127)),
        (hardtanh(-2.0, -1.0), result_spec(0.1, 0, 0, 127)),
        # Bounds that float32 does not hold.
        (F.relu, result_spec(1e-40, 10, 0, 127)),
        (F.relu, result_spec(1e37, 10, 0, 127)),
    ],
    ids=["above", "below", "scale too small", "scale too large"],
)
def test_a_clamp_that_cannot_be_folded_is_left_to_the_compiler(
    kind: str, activation: Activation, spec: FixedQParamsQuantizationSpec
) -> None:
    converted, model, x = lowered(kind, activation, spec)
    assert clamps(model) == 0
    assert quantized_behind(model)
    with torch.no_grad():
        assert (model(x) - converted(x)).abs().max() <= 1.01 * spec.scale


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_ranges_that_fill_the_dtype_need_no_clamp(kind: str) -> None:
    for activation, name in ((F.relu, "relu"), (lambda x: x, "none")):
        _, model, _ = lowered(kind, activation, result_spec(0.1, 10, 0, 255))
        assert clamps(model) == 0
        assert kernel_of(model).args[-3] == name


def test_compiled() -> None:
    torch._dynamo.reset()
    for kind in ("conv2d", "linear"):
        _, model, x = lowered(kind, F.relu, result_spec(0.0371, 11, 0, 127))
        with torch.no_grad():
            assert torch.equal(torch.compile(model)(x), model(x))
