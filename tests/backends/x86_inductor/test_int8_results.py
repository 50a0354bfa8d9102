"""Results from 0 to 127: kernels write them as int8, where that saturates as the graph does."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import attrs
import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit import FixedQParamsQuantizationSpec, QuantizationAnnotation, Quantizer
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.fx import GraphModule

aten, onednn = torch.ops.aten, torch.ops.onednn
SUM, CONV = onednn.qconv2d_pointwise.binary, onednn.qconv_pointwise.default
WEIGHTED = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)
Activation = Callable[[Tensor], Tensor]


def fixed(scale: float, zero_point: int, high: int = 127, low: int = 0) -> FixedQParamsQuantizationSpec:
    dtype = torch.int8 if low < 0 else torch.uint8
    return FixedQParamsQuantizationSpec(
        dtype=dtype, scale=scale, zero_point=zero_point, quant_min=low, quant_max=high
    )


# All scales are powers of two and all weights small integers times one: float32 computes exactly.
INPUT = fixed(2**-3, 60)
WEIGHT = fixed(2**-2, 0, 127, -128)
RELU_RESULT = fixed(2**-1, 9)


@attrs.frozen
class Fixed(Quantizer):
    """Quantizes what weighted operators read, and results by the name of their node."""

    results: dict[str, FixedQParamsQuantizationSpec]

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            specs = {node.args[0]: INPUT, node.args[1]: WEIGHT} if node.target in WEIGHTED else {}
            if node.target in WEIGHTED and node.args[0].name in self.results:
                del specs[node.args[0]]
                specs[node.args[0]] = self.results[node.args[0].name]
            output = self.results.get(node.name)
            if specs or output:
                node.meta["quantization_annotation"] = QuantizationAnnotation(specs, output)
            if node.target is aten.add.Tensor and node.args[1].name in self.results:
                other = {node.args[1]: self.results[node.args[1].name]}
                node.meta["quantization_annotation"] = QuantizationAnnotation(other, output)
        return model


def with_small_weights(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            numbers = torch.randint(-9, 10, parameter.shape)
            # With half a step in the bias nothing is a tie, which kernels and the graph round differently.
            parameter.copy_(2**-2 * numbers if name.endswith("weight") else 2**-6 * (2 * numbers + 1))
        if hasattr(model, "last"):
            model.last.weight.copy_(torch.eye(len(model.last.weight)).view_as(model.last.weight))
            model.last.bias.zero_()
    return model.eval()


def conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class Sum(nn.Module):
    """A convolution with a residual; what is last hands its input on."""

    def __init__(self, activation: Activation = F.relu) -> None:
        super().__init__()
        self.other, self.conv, self.last = conv(4, 8), conv(4, 8), nn.Conv2d(8, 8, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.conv(x) + self.other(x)))


class ReadInFloat(Sum):
    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.conv(x) + self.other(x))
        return self.last(y) + y


class OtherIsReadLater(Sum):
    def forward(self, x: Tensor) -> Tensor:
        other = self.other(x)
        return self.last(self.activation(self.conv(x) + other)) + self.last(other)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv1d(4, 8, 3), nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.conv(x)))


class Single(nn.Module):
    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.conv, self.last = conv(4, 8), nn.Conv2d(8, 8, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.conv(x)))


def image(*shape: int) -> Tensor:
    """Numbers of the input's scale, some beyond its range."""
    torch.manual_seed(1)
    return 2**-3 * torch.randint(-90, 90, shape or (2, 4, 7, 6)).float()


def lowered(
    model: nn.Module, results: dict[str, FixedQParamsQuantizationSpec], *inputs: Tensor, **options: Any
) -> tuple[GraphModule, GraphModule]:
    """The converted and the lowered model."""
    exported = torch.export.export(with_small_weights(model), inputs).module()
    assert isinstance(exported, GraphModule)
    prepared = lowbit.prepare_pt2e(exported, Fixed(results))
    with torch.no_grad():
        prepared(*inputs)
        converted = lowbit.convert_pt2e(prepared)
        return converted, lowbit.lower_pt2e(converted, "x86_inductor", **options)


def calls(model: GraphModule, target: Any) -> list[Any]:
    return list(model.graph.find_nodes(op="call_function", target=target))


def dtype_of_result(kernel: Any) -> torch.dtype:
    return next(argument for argument in kernel.args if isinstance(argument, torch.dtype))


def steps(result: Tensor, spec: FixedQParamsQuantizationSpec) -> tuple[int, int]:
    """The smallest and the largest quantized value in ``result``, which is dequantized."""
    low, high = (result / spec.scale + spec.zero_point).round().aminmax()
    return int(low), int(high)


@pytest.mark.parametrize("zero_point", [0, 9, 127])
@pytest.mark.parametrize("other_zero_point", [0, 70])
def test_a_sum_saturates_as_in_the_graph(zero_point: int, other_zero_point: int) -> None:
    result, other = fixed(2**-1, zero_point), fixed(2**-1, other_zero_point)
    x = image()
    converted, model = lowered(
        Sum(), {"relu": result, "conv2d_1": other}, x, verify="numeric", example_inputs=[(x,)]
    )
    (kernel,) = calls(model, SUM)
    assert dtype_of_result(kernel) is torch.int8
    assert not calls(model, aten.clamp.default)
    with torch.no_grad():
        expected = converted(x)
        assert steps(expected, result) == (zero_point, 127), "nothing was saturated"
        assert torch.equal(model(x), expected)


KEPT: dict[str, tuple[nn.Module, dict[str, FixedQParamsQuantizationSpec]]] = {
    # What is below the range int8 would hold.
    "below": (Sum(lambda x: x), {"add": fixed(2**-1, 60), "conv2d_1": INPUT}),
    "narrower": (Sum(), {"relu": fixed(2**-1, 9, 100), "conv2d_1": INPUT}),
    # What is added would be negative.
    "other-of-8-bits": (Sum(), {"relu": RELU_RESULT, "conv2d_1": fixed(2**-1, 128, 255)}),
    "read-in-float": (ReadInFloat(), {"relu": RELU_RESULT, "conv2d_1": INPUT}),
    "other-is-read-later": (OtherIsReadLater(), {"relu": RELU_RESULT, "conv2d": INPUT}),
}


@pytest.mark.parametrize("case", KEPT)
def test_sums_are_clamped_where_int8_is_not_the_same_or_not_faster(case: str) -> None:
    model, results = KEPT[case]
    x = image()
    converted, low = lowered(model, results, x)
    (kernel,) = calls(low, SUM)
    assert dtype_of_result(kernel) is torch.uint8
    assert len(calls(low, aten.clamp.default)) == 1
    assert not calls(low, aten.view.dtype)
    with torch.no_grad():
        assert torch.equal(low(x), converted(x))


def test_in_one_dimension() -> None:
    x = image(2, 4, 40)
    converted, low = lowered(Line(), {"relu": RELU_RESULT}, x)
    assert dtype_of_result(calls(low, CONV)[0]) is torch.int8
    assert not calls(low, aten.clamp.default)
    with torch.no_grad():
        expected = converted(x)
        assert steps(expected, RELU_RESULT) == (9, 127)
        assert torch.equal(low(x), expected)


@attrs.frozen
class Curve:
    """A post-operator with a least value, and parameters by which that is quantized to this, or below 0."""

    function: Activation
    scale: float
    zero_point: int
    least: int

    @property
    def spec(self) -> FixedQParamsQuantizationSpec:
        return fixed(self.scale, self.zero_point)


CURVES = {
    "hardswish": Curve(F.hardswish, 0.0425, 9, 0),
    # At −0.375 / 0.25 + 1 = −0.5, rounded to 0 or below as floats will have it.
    "hardswish-on-edge": Curve(F.hardswish, 0.25, 1, -1),
    "hardswish-below": Curve(F.hardswish, 0.0425, 8, -1),
    "hardswish-far-below": Curve(F.hardswish, 0.01, 0, -38),
    "hardswish-above": Curve(F.hardswish, 0.01, 50, 12),
    "silu": Curve(F.silu, 0.05, 6, 0),
    "silu-below": Curve(F.silu, 0.05, 5, -1),
}


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_written_as_int8_if_all_of_them_is_in_the_range(name: str) -> None:
    curve = CURVES[name]
    # Near the minimum and far on both sides of it.
    x = image()
    converted, low = lowered(Single(curve.function), {name.split("-", maxsplit=1)[0]: curve.spec}, x)
    kernel, _ = calls(low, CONV)
    assert dtype_of_result(kernel) is (torch.float32 if curve.least < 0 else torch.int8)
    with torch.no_grad():
        expected, actual = converted(x), low(x)
    assert steps(expected, curve.spec)[1] == 127
    difference = (actual - expected).abs() / curve.scale
    # To a rounding at ties: what wrapped around would be far away.
    assert difference.max() <= 1.01
    assert (difference > 0.5).sum() <= 1


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.last = nn.Conv2d(3, 16, 3), conv(16, 16), conv(16, 16), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.stem(x)), 2)
        for _ in range(3):
            y = F.relu(self.b(F.hardswish(self.a(y))) + y)
        return self.last(y)


def test_compiled_code_neither_clamps_nor_copies() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    x = 9 * torch.randn(2, 3, 22, 22)  # enough for hardswish to meet its minimum
    exported = torch.export.export(Chain().eval(), (x,)).module()
    assert isinstance(exported, GraphModule)
    config = lowbit.get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = lowbit.prepare_pt2e(exported, lowbit.X86InductorQuantizer().set_global(config))
    converted = lowbit.convert_pt2e(lowbit.calibrate(prepared, [x], progress=False))
    low = lowbit.lower_pt2e(converted, pack_weights=False)
    written = [dtype_of_result(node) for target in (SUM, CONV) for node in calls(low, target)]
    assert sum(dtype is torch.int8 for dtype in written) == 6

    saved = io.BytesIO()
    torch.export.save(torch.export.export(low, (x,)), saved)
    saved.seek(0)
    loaded = torch.export.load(saved).module()
    packed = lowbit.lower_pt2e(converted)
    with torch.no_grad():
        y = 5 * x
        expected = packed(y)
        assert torch.equal(low(y), expected)
        assert torch.equal(loaded(y), expected)
        actual, (code,) = run_and_get_code(torch.compile(packed), y)
        assert torch.equal(actual, expected)
    loops = [line for line in code.splitlines() if line.startswith("cpp_fused")]
    assert len(loops) == 1, "more than the input is quantized in loops"
    assert "bit_cast" not in code


def test_results_that_fill_their_dtype_are_written_as_it() -> None:
    x = image()
    _, low = lowered(Single(F.hardswish), {"hardswish": fixed(0.0425, 9, 255)}, x)
    assert not calls(low, aten.view.dtype)
    assert dtype_of_result(calls(low, CONV)[0]) is torch.uint8
