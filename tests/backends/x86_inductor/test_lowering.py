"""Lowering to oneDNN kernels: what is replaced by what, what is not and why, and that values stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    Stage,
    convert_pt2e,
    decisions,
    get_stage,
    lower_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule

QUANTIZE, DEQUANTIZE = str(qd.QUANTIZE_PER_TENSOR), str(qd.DEQUANTIZE_PER_TENSOR)
QCONV = "onednn.qconv_pointwise.default"
QCONV_ADD = "onednn.qconv2d_pointwise.binary"
QLINEAR = "onednn.qlinear_pointwise.default"
IN_PLACE, COPY = "aten.contiguous.default", "aten.clone.default"

# Float sums in another order: far below the step of any scale here.
ROUNDING = 1e-6
# Where several layers follow each other a rounding may part at a tie and is carried on. Reading memory that
# was overwritten shows as 0.05 and more.
TIES = 0.01


class Flow(Protocol):
    prepared: GraphModule
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


def conv(c_in: int, c_out: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)


class Residual(nn.Module):
    """A residual that the first of two additions may overwrite, or not, as ``body`` has it."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = conv(3, channels)
        self.a = conv(channels, channels)
        self.b = conv(channels, channels)
        self.c = conv(channels, channels)
        self.head = conv(channels, 4)
        self.linear = nn.Linear(channels, 4)

    def branch(self, r: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(r))) + r)


class ReadOnce(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.branch(F.relu(self.stem(x))))


class ReadByLaterConv(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = F.relu(self.stem(x))
        y = self.branch(r)
        return self.head(y), self.head(r)


class ReadByTwoAdditions(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = F.relu(self.stem(x))
        return self.head(self.branch(r)), self.head(F.relu(r + self.c(self.head_in(r))))

    def head_in(self, r: Tensor) -> Tensor:
        return F.relu(self.a(r))


class ReadByFloatOperator(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = F.relu(self.stem(x))
        y = self.branch(r)
        return self.head(y), torch.sigmoid(r)


class Returned(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = F.relu(self.stem(x))
        return self.head(self.branch(r)), r


class Input(Residual):
    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        return self.head(F.relu(self.stem(x) + r))


class ConvolvedAndAdded(Residual):
    """The kernel would read the memory that it writes."""

    def forward(self, x: Tensor) -> Tensor:
        r = F.relu(self.stem(x))
        return self.head(F.relu(self.a(r) + r))


class ReadByView(Residual):
    """Of images of one pixel ``flatten`` is a view, on integers too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = F.relu(self.stem(x))
        flat = torch.flatten(r, 1)
        return self.head(self.branch(r)), self.linear(flat)


class View(Residual):
    """A view that moves no dimension, of a tensor that is read again."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = F.relu(self.stem(x))
        y = F.relu(self.b(F.relu(self.a(r))) + torch.flatten(r, 3))
        return self.head(y), self.head(r)


class ConvolvedAndAddedAsView(Residual):
    def forward(self, x: Tensor) -> Tensor:
        r = F.relu(self.stem(x))
        return self.head(F.relu(self.a(r) + torch.flatten(r, 3)))


IMAGE, PIXEL = (2, 3, 33, 33), (2, 3, 1, 1)
# The large images are for kernels to work in blocks, so that reading what was just written shows.
IN_PLACE_SAFETY: dict[str, tuple[type[nn.Module], list[tuple[int, ...]], list[str]]] = {
    "read once": (ReadOnce, [IMAGE], [IN_PLACE]),
    "read by a convolution behind it": (ReadByLaterConv, [IMAGE], [COPY]),
    "read by two additions": (ReadByTwoAdditions, [IMAGE], [COPY, IN_PLACE]),
    "returned": (Returned, [IMAGE], [IN_PLACE]),
    "read by a float operator": (ReadByFloatOperator, [IMAGE], [IN_PLACE]),
    "an input": (Input, [IMAGE, (2, 16, 33, 33)], [IN_PLACE]),
    "convolved itself": (ConvolvedAndAdded, [IMAGE], []),
    "read through a view": (ReadByView, [PIXEL], [COPY]),
    "a view": (View, [IMAGE], [COPY]),
    "a view of what is convolved": (ConvolvedAndAddedAsView, [IMAGE], []),
}


@pytest.mark.parametrize("case", IN_PLACE_SAFETY)
def test_accumulating_in_place_overwrites_nothing_that_is_read(case: str, run_flow: RunFlow) -> None:
    model, shapes, layouts = IN_PLACE_SAFETY[case]
    inputs = [torch.randn(shape) for shape in shapes]
    flow = run_flow(model(), *inputs)
    assert flow.difference() < TIES
    assert flow.difference(*(2 * x for x in inputs)) < TIES
    assert [t for t in flow.targets() if t in {IN_PLACE, COPY}] == layouts


def test_what_is_added_to_its_own_convolution_is_added_in_float(run_flow: RunFlow) -> None:
    flow = run_flow(ConvolvedAndAdded(), torch.randn(IMAGE))
    assert flow.targets().count(QCONV) == 3
    assert {flow.decision(n).reason for n in ("add", "relu_1")} == {"accumulator-is-input"}
    assert flow.decision("conv2d_1").reason == "conv2d"


# What follows convolutions in 8 bits.


class Followers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(3, 8)
        self.head = conv(16, 4)
        self.linear = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.a(x)), self.b(x)], 1)
        y = F.max_pool2d(y, 3, stride=2, padding=1, ceil_mode=True)
        y = F.avg_pool2d(self.head(y), 2)
        return self.linear(torch.flatten(y, 1))


@pytest.mark.usefixtures("linears_stay")
def test_operators_that_move_values_work_on_integers(run_flow: RunFlow) -> None:
    flow = run_flow(Followers(), torch.randn(2, 3, 12, 12))
    assert flow.targets() == [
        QUANTIZE,
        QCONV,
        QCONV,
        "aten.cat.default",
        "quantized.max_pool2d.default",
        QCONV,
        DEQUANTIZE,
        "aten.avg_pool2d.default",
        QUANTIZE,
        "aten.flatten.using_ints",
        QLINEAR,
    ]
    assert flow.difference() < ROUNDING
    assert flow.decision("cat").status == "quantized"
    assert flow.decision("avg_pool2d").status == "quantized"


class CatOfOne(nn.Module):
    """One tensor twice, and lists of one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 8), conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x)], 1)
        return self.head(torch.cat([y, y], 1))


def test_cat_of_one_tensor_twice(run_flow: RunFlow) -> None:
    flow = run_flow(CatOfOne(), torch.randn(2, 3, 6, 6))
    assert flow.targets() == [QUANTIZE, QCONV, "aten.cat.default", "aten.cat.default", QCONV]
    assert flow.difference() < ROUNDING


def test_integer_operators_do_not_claim_to_be_float(run_flow: RunFlow) -> None:
    flow = run_flow(Followers(), torch.randn(2, 3, 12, 12))
    for node in flow.lowered.graph.nodes:
        value = node.meta.get("val")
        if str(node.target) in {
            "aten.cat.default",
            "quantized.max_pool2d.default",
            "aten.flatten.using_ints",
        }:
            assert value is None or value.dtype is torch.uint8


# Quantizers of the user's own may annotate what no kernel takes.


def spec(
    dtype: torch.dtype, qscheme: torch.qscheme, bounds: tuple[int | None, int | None] = (None, None)
) -> QuantizationSpec:
    per_channel = qscheme in (torch.per_channel_affine, torch.per_channel_symmetric)
    return QuantizationSpec(
        dtype=dtype,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver if per_channel else MinMaxObserver,
        qscheme=qscheme,
        ch_axis=0 if per_channel else None,
        quant_min=bounds[0],
        quant_max=bounds[1],
    )


UINT8 = spec(torch.uint8, torch.per_tensor_affine, (0, 255 if has_vnni() else 127))
INT8 = spec(torch.int8, torch.per_tensor_affine)
WEIGHT = spec(torch.int8, torch.per_channel_symmetric)


@attrs.define
class ConvAddRelu(Quantizer):
    """Annotates ``relu(conv2d(x) + y)`` without asking what is there."""

    activation: QuantizationSpec = UINT8
    weight: QuantizationSpec = WEIGHT
    other: QuantizationSpec = UINT8
    output: QuantizationSpec | None = UINT8

    def annotate(self, model: GraphModule) -> GraphModule:
        aten = torch.ops.aten
        for node in model.graph.nodes:
            if node.target is aten.conv2d.default:
                specs = {node.args[0]: self.activation, node.args[1]: self.weight}
                node.meta["quantization_annotation"] = QuantizationAnnotation(specs)
            elif node.target is aten.add.Tensor:
                node.meta["quantization_annotation"] = QuantizationAnnotation({node.args[1]: self.other})
            elif node.target is aten.relu.default:
                node.meta["quantization_annotation"] = QuantizationAnnotation({}, self.output)
        return model


class ConvPlus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(self.conv(x) + y)


class ScaledWeight(ConvPlus):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, 2 * self.conv.weight, self.conv.bias, padding=1) + y)


class AlphaAdd(ConvPlus):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(torch.add(self.conv(x), y, alpha=3))


@attrs.frozen
class Refusal:
    """What a kernel is asked, what is left of kernels, and why conv2d and add are not in them."""

    quantizer: ConvAddRelu
    kernels: list[str]
    conv: str
    add: str
    model: type[nn.Module] = ConvPlus
    other: tuple[int, ...] = (2, 8, 6, 6)
    dtype: torch.dtype = torch.float32


PER_TENSOR_WEIGHT = spec(torch.int8, torch.per_tensor_symmetric)
AFFINE_WEIGHT = spec(torch.int8, torch.per_channel_affine)
UNSIGNED_WEIGHT = spec(torch.uint8, torch.per_channel_affine)
NOT_INT8 = "weight-not-int8-per-output-channel"

REFUSALS: dict[str, Refusal] = {
    "all fits": Refusal(ConvAddRelu(), [QCONV_ADD], "conv2d-add-relu", "conv2d-add-relu"),
    "added per channel": Refusal(ConvAddRelu(), [QCONV], "conv2d", "operands-broadcast", other=(8, 1, 1)),
    "added per image": Refusal(ConvAddRelu(), [QCONV], "conv2d", "operands-broadcast", other=(2, 1, 1, 1)),
    "scaled addition": Refusal(ConvAddRelu(), [QCONV], "conv2d", "no-kernel", model=AlphaAdd),
    "signed sum": Refusal(ConvAddRelu(output=INT8), [QCONV], "conv2d", "sum-read-in-float"),
    "float sum": Refusal(ConvAddRelu(output=None), [QCONV], "conv2d", "sum-read-in-float"),
    "signed input": Refusal(ConvAddRelu(activation=INT8), [], "activation-not-uint8", "activation-not-uint8"),
    "one weight scale": Refusal(
        ConvAddRelu(weight=PER_TENSOR_WEIGHT), [QCONV_ADD], "conv2d-add-relu", "conv2d-add-relu"
    ),
    "weights with zero points": Refusal(
        ConvAddRelu(weight=AFFINE_WEIGHT), [], "weight-not-symmetric", "weight-not-symmetric"
    ),
    "unsigned weights": Refusal(ConvAddRelu(weight=UNSIGNED_WEIGHT), [], NOT_INT8, NOT_INT8),
    "computed weight": Refusal(
        ConvAddRelu(), [], "weight-not-constant", "weight-not-constant", model=ScaledWeight
    ),
    "half precision": Refusal(
        ConvAddRelu(), [], "activation-not-float32", "activation-not-float32", dtype=torch.float16
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_kernels_refuse_what_they_do_not_compute(case: str, run_flow: RunFlow) -> None:
    asked = REFUSALS[case]
    model, inputs = asked.model(), (torch.randn(2, 3, 6, 6), torch.randn(asked.other))
    flow = run_flow(
        model.to(asked.dtype),
        *(x.to(asked.dtype) for x in inputs),
        quantizer=asked.quantizer,
        backend="x86_inductor",
    )
    assert [t for t in flow.targets() if "pointwise" in t] == asked.kernels
    assert flow.decision("conv2d").reason == asked.conv
    assert flow.decision("add").reason == asked.add
    assert flow.difference() < ROUNDING


def test_an_image_without_a_batch_stays_float(run_flow: RunFlow) -> None:
    inputs = torch.randn(3, 6, 6), torch.randn(8, 6, 6)
    flow = run_flow(ConvPlus(), *inputs, quantizer=ConvAddRelu(), backend="x86_inductor")
    assert not [t for t in flow.targets() if "pointwise" in t]
    assert flow.decision("conv2d").reason == "not-4-dimensional"
    assert flow.difference() == 0


def test_signed_results_are_as_good_as_unsigned_ones(run_flow: RunFlow) -> None:
    class ConvRelu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x))

    flow = run_flow(
        ConvRelu(), torch.randn(2, 3, 6, 6), quantizer=ConvAddRelu(output=INT8), backend="x86_inductor"
    )
    assert flow.targets() == [QUANTIZE, QCONV, DEQUANTIZE]
    assert flow.difference() < ROUNDING


# The packing of weights.


@pytest.mark.usefixtures("linears_stay")
def test_packing_is_done_ahead_or_at_every_call(run_flow: RunFlow) -> None:
    model, x = Followers(), torch.randn(2, 3, 12, 12)
    packed, unpacked = run_flow(model, x), run_flow(model, x, pack_weights=False)
    calls = ["onednn.qconv_prepack.default", "onednn.qlinear_prepack.default"]
    assert [unpacked.targets().count(call) for call in calls] == [3, 1]
    assert not set(calls) & set(packed.targets())
    with torch.no_grad():
        assert torch.equal(packed.lowered(x), unpacked.lowered(x))
    names = set(packed.lowered.state_dict())
    assert {"a.weight_int8_packed", "a.weight_scale", "a.bias"} <= names
    assert not names & {"a.weight", "a.weight_int8"}
    assert get_stage(packed.lowered) is get_stage(unpacked.lowered) is Stage.LOWERED


@pytest.mark.usefixtures("linears_stay")
def test_a_layer_that_is_called_several_times_is_packed_once(run_flow: RunFlow) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(F.relu(self.linear(x)))

    flow = run_flow(Twice(), torch.randn(2, 6))
    assert flow.targets().count(QLINEAR) == 2
    assert [n for n in flow.lowered.state_dict() if n.endswith("packed")] == ["linear.weight_int8_packed"]
    assert flow.difference() < ROUNDING


def test_packed_models_ask_for_no_gradients(run_flow: RunFlow) -> None:
    flow = run_flow(Followers(), torch.randn(2, 3, 12, 12))
    assert not [name for name, p in flow.lowered.named_parameters() if p.requires_grad]
    assert not flow.lowered(torch.randn(2, 3, 12, 12)).requires_grad
    assert all(p.requires_grad for p in flow.converted.parameters())


def test_lowering_leaves_the_converted_model_as_it_was(run_flow: RunFlow) -> None:
    flow = run_flow(Followers(), torch.randn(2, 3, 12, 12))
    lower_pt2e(flow.converted)
    assert get_stage(flow.converted) is Stage.QDQ
    assert flow.difference() < ROUNDING
    assert {d.detail for d in decisions(flow.converted)} == {""}


# The ledger after lowering.


def test_operators_left_float_have_their_reason(run_flow: RunFlow) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 8), conv(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            first, _ = torch.split(F.gelu(self.a(x)), 4, 1)
            return F.max_pool2d(self.b(first), 2) + 1

    flow = run_flow(Mixed(), torch.randn(2, 3, 6, 6))
    reasons = {d.node: d.reason for d in decisions(flow.lowered) if d.status == "float"}
    assert reasons == {
        "gelu": "pointwise",
        "split": "float-input",
        "getitem": "float-input",
        "max_pool2d": "no-low-precision-reader",
        "add": "pointwise",
    }
    assert flow.decision("conv2d").detail == "runs as onednn.qconv_pointwise"
    assert flow.difference() < ROUNDING


def test_a_pass_between_convert_and_lower_shows_in_the_ledger(run_flow: RunFlow) -> None:
    """What was annotated and then lost its quantize is not reported as quantized."""
    flow = run_flow(Followers(), torch.randn(2, 3, 12, 12))
    edited = convert_pt2e(flow.prepared)
    (average,) = edited.graph.find_nodes(op="call_function", target=torch.ops.aten.avg_pool2d.default)
    (quantize,) = average.users
    (dequantize,) = quantize.users
    dequantize.replace_all_uses_with(average)
    edited.recompile()
    left = {d.node: d for d in decisions(lower_pt2e(edited))}
    assert (left["avg_pool2d"].status, left["avg_pool2d"].reason) == ("float", "no-kernel")
    assert (left["flatten"].status, left["flatten"].reason) == ("float", "no-kernel")
    assert left["linear"].status == "quantized"


def test_equal_movements_of_one_tensor_apart_from_each_other() -> None:
    """The one that is lowered first stands behind readers of the other."""

    x = torch.randn(2, 3)
    parameters = (0.1, 3, 0, 255, torch.uint8)

    def pair(graph: torch.fx.Graph, source: Any) -> Any:
        q = graph.call_function(qd.QUANTIZE_PER_TENSOR, (source, *parameters))
        return q, graph.call_function(qd.DEQUANTIZE_PER_TENSOR, (q, *parameters))

    graph = torch.fx.Graph()
    q, _ = pair(graph, graph.placeholder("x"))
    results = []
    for _ in range(2):
        real = graph.call_function(qd.DEQUANTIZE_PER_TENSOR, (q, *parameters))
        moved = graph.call_function(torch.ops.aten.transpose.int, (real, 0, 1))
        results.append(pair(graph, moved)[1])
    graph.output(tuple(results))
    qdq = torch.fx.GraphModule(nn.Module(), graph)
    lowered = lower_pt2e(qdq, "x86_inductor")
    assert len(lowered.graph.find_nodes(op="call_function", target=torch.ops.aten.transpose.int)) == 1
    for got, want in zip(lowered(x), qdq(x), strict=True):
        assert torch.equal(got, want)


def test_equal_movements_run_at_the_call_that_is_left(run_flow: RunFlow) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            return self.b(torch.cat([y, y])), self.c(torch.cat([y, y]))

    flow = run_flow(Twice(), torch.randn(2, 4))
    (left,) = flow.lowered.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)
    assert [flow.decision(name).runs_at for name in ("cat", "cat_1")] == [left.name] * 2
    assert flow.difference() < ROUNDING


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: torch.ops.aten.max_pool2d(x, [2]),
        lambda x: torch.ops.aten.max_pool2d(x, [2, 3], [2, 1], [1], [1, 2]),
        lambda x: F.max_pool2d(x, (3, 2), stride=[1]),
        lambda x: F.max_pool2d(x, 3, stride=2, dilation=2, ceil_mode=True),
    ],
    ids=["window", "padding", "stride", "dilation"],
)
def test_pooling_that_one_number_describes(pool: Callable[[Tensor], Tensor], run_flow: RunFlow) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 4), conv(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(pool(self.a(x)))

    flow = run_flow(Pooled(), torch.randn(2, 3, 9, 8))
    assert "quantized.max_pool2d.default" in flow.targets()
    assert flow.difference() < ROUNDING
