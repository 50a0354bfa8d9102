"""What XNNPACK quantizes: the operators, the edges and outputs, and the reasons of what stays float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    ComposableQuantizer,
    Pipeline,
    QuantizationAnnotation,
    QuantizationConfig,
    SharedQuantizationSpec,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from lowbit.ir.annotation import get_annotation
from lowbit.passes import Annotate, Normalize, PassContext, PassManager
from torch import Tensor, nn
from torch.fx import GraphModule, Node

STATIC = get_symmetric_quantization_config()
PER_CHANNEL = get_symmetric_quantization_config(is_per_channel=True)
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)

# That nothing was quantized is what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")


class Model(nn.Module):
    """Layers to write small models with; ``body`` is the forward."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(4, 4, 3)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.conv3d = nn.Conv3d(4, 4, 3)
        self.transposed = nn.ConvTranspose2d(4, 6, 2, 2)
        self.grouped = nn.ConvTranspose2d(4, 6, 2, 2, groups=2)
        self.linear = nn.Linear(6, 5)
        self.body = body

    def forward(self, *inputs: Tensor) -> Any:
        return self.body(self, *inputs)


@attrs.frozen
class Annotated:
    graph: torch.fx.Graph
    context: PassContext

    def node(self, name: str) -> Node:
        return next(node for node in self.graph.nodes if node.name == name)

    def __getitem__(self, name: str) -> QuantizationAnnotation:
        annotation = get_annotation(self.node(name))
        assert annotation is not None
        return annotation

    def inputs(self, name: str) -> dict[str, object]:
        return {node.name: spec for node, spec in self[name].input_qspec_map.items()}

    def reasons(self) -> dict[str, str]:
        """Node → operator pattern, or the reason in brackets."""
        return {
            d.node: d.reason if d.status == "quantized" else f"({d.reason})"
            for d in self.context.ledger.decisions
        }


def annotate(
    body: Callable[..., Any], *inputs: Tensor, config: QuantizationConfig = STATIC, **options: Any
) -> Annotated:
    exported = torch.export.export(Model(body).eval(), inputs or (X,), **options).module()
    assert isinstance(exported, GraphModule)
    context = PassContext(quantizer=XNNPACKQuantizer().set_global(config))
    gm = PassManager().run(exported, Pipeline((Normalize(), Annotate())), context)
    return Annotated(gm.graph, context)


X = torch.zeros(2, 4, 6, 6)
ACTIVATION, WEIGHT = STATIC.input_activation, STATIC.weight


# Operators that compute.


@pytest.mark.parametrize(
    ("body", "inputs", "expected"),
    [
        (lambda m, x: m.conv1d(x), (X[:, :, 0],), {"conv1d": "conv1d"}),
        (lambda m, x: m.conv(x), (X,), {"conv2d": "conv2d"}),
        (lambda m, x: m.depthwise(x), (X,), {"conv2d": "conv2d"}),
        (lambda m, x: m.transposed(x), (X,), {"conv_transpose2d": "conv_transpose2d"}),
        (lambda m, x: m.linear(x), (X,), {"linear": "linear"}),
        (lambda m, x, y: x + y, (X, X), {"add": "add"}),
        (lambda m, x, y: x * y, (X, X), {"mul": "mul"}),
        (lambda m, x: x + x, (X,), {"add": "add"}),
        (lambda m, x, y: x + y, (X, X[0, 0]), {"add": "add"}),
        (lambda m, x: x * m.linear.bias.sum(), (X,), {"sum_1": "(no-pattern)", "mul": "mul"}),
    ],
    ids=[
        "conv1d", "conv2d", "depthwise", "transposed", "linear", "add", "mul", "itself", "broadcast", "0-d",
    ],
)  # fmt: skip
def test_operators(body: Callable[..., Any], inputs: tuple[Tensor, ...], expected: dict[str, str]) -> None:
    assert annotate(body, *inputs).reasons() == expected


@pytest.mark.parametrize("clamp", [F.relu, F.relu6, F.hardtanh])
@pytest.mark.parametrize("layer", ["conv1d", "conv", "transposed", "linear"])
def test_clamps_are_fused_into_what_has_weights(layer: str, clamp: Callable[..., Tensor]) -> None:
    x = X[:, :, 0] if layer == "conv1d" else X
    found = annotate(lambda m, x: clamp(getattr(m, layer)(x)), x)
    first, second = found.reasons().values()
    assert first == second
    # ReLU6 is hardtanh with other bounds.
    assert first.endswith("-relu" if clamp is F.relu else "-hardtanh")


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("operator", [torch.add, torch.mul])
def test_relu_is_fused_into_sums_and_products(operator: Callable[..., Tensor], strict: bool) -> None:
    found = annotate(lambda m, x, y: F.relu_(operator(x, y)), X, X, strict=strict)
    assert set(found.reasons().values()) == {f"{operator.__name__}-relu"}
    assert len(found.reasons()) == 2


def test_inputs_weights_and_the_output_are_quantized_and_the_bias_is_not() -> None:
    found = annotate(lambda m, x: F.relu(m.conv(x)))
    assert found.inputs("conv2d") == {"inputs_0": ACTIVATION, "conv_weight": WEIGHT}
    assert found.inputs("relu") == {}
    assert found["conv2d"].output_qspec is None
    assert found["relu"].output_qspec is ACTIVATION


def test_both_operands_of_a_sum_are_quantized() -> None:
    found = annotate(lambda m, x, y: x + y, X, X.clone())
    assert found.inputs("add") == {"inputs_0": ACTIVATION, "inputs_1": ACTIVATION}
    assert annotate(lambda m, x: x + x).inputs("add") == {"inputs_0": ACTIVATION}


def test_scales_a_channel_follow_the_output_channels() -> None:
    found = annotate(lambda m, x: (m.conv(x), m.transposed(x), m.linear(x)), config=PER_CHANNEL)
    axes = {
        name: spec.ch_axis
        for operator in ("conv2d", "conv_transpose2d", "linear")
        for name, spec in found.inputs(operator).items()
        if name.endswith("weight")
    }
    assert axes == {"conv_weight": 0, "transposed_weight": 1, "linear_weight": 0}


# What stays float, and why.


@pytest.mark.parametrize(
    ("body", "inputs", "operator", "reason"),
    [
        (lambda m, x: m.conv3d(x), (torch.zeros(1, 4, 4, 6, 6),), "conv3d", "no-pattern"),
        (lambda m, x: m.grouped(x), (X,), "conv_transpose2d", "grouped-transposed-convolution"),
        (lambda m, x: F.relu(m.grouped(x)), (X,), "conv_transpose2d", "grouped-transposed-convolution"),
        (lambda m, x: F.conv2d(x, m.conv.weight * 2), (X,), "conv2d", "weight-not-constant"),
        (lambda m, x: m.conv(x), (X[0],), "conv2d", "not-4-dimensional"),
        (lambda m, x: x + 2, (X,), "add", "not-a-node"),
        (lambda m, x: 2 * x, (X,), "mul", "not-a-node"),
        (lambda m, x, y: torch.add(x, y, alpha=2), (X, X), "add", "different-literal"),
        (lambda m, x, y: x + y, (X, X.long()), "add", "activation-not-float32"),
        (lambda m, x, y: x * y, (X, X.double()), "mul", "activation-not-float32"),
        (lambda m, x, y: x + y, (X.half(), X.half()), "add", "activation-not-float32"),
        (lambda m, x: x - 1, (X,), "sub", "no-pattern"),
    ],
)
def test_reasons(body: Callable[..., Any], inputs: tuple[Tensor, ...], operator: str, reason: str) -> None:
    found = annotate(body, *inputs)
    assert found.reasons()[operator] == f"({reason})"
    assert get_annotation(found.node(operator)) is None


@pytest.mark.parametrize("operator", [torch.add, torch.mul])
def test_integers_are_left_alone(operator: Callable[..., Tensor]) -> None:
    found = annotate(lambda m, i: (operator(i, i), operator(i, 2), F.relu(operator(i, i))), X.long())
    assert all(get_annotation(node) is None for node in found.graph.nodes)


# Operators that keep the scale of their input.


FOLLOWERS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "hardtanh": F.hardtanh,
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((-1, 2), keepdim=True),
    "flatten": lambda x: torch.flatten(x, 1),
    "reshape": lambda x: x.reshape(2, -1),
    "view": lambda x: x.view(2, -1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "slice": lambda x: x[:, 1:3],
}


@pytest.mark.parametrize("pattern", sorted(FOLLOWERS))
def test_what_keeps_values_follows_a_quantized_operator(pattern: str) -> None:
    function = FOLLOWERS[pattern]
    # Behind the second reader, so that clamps are not fused; its own result is read in float.
    found = annotate(lambda m, x: ((y := m.conv(x)).sum(), function(y)))
    conv, follower = found.node("conv2d"), found.node({"slice": "slice_1"}.get(pattern, pattern))
    assert found.reasons()[follower.name] == pattern
    assert found[follower.name].input_qspec_map == {conv: ACTIVATION}
    assert found[follower.name].output_qspec == SharedQuantizationSpec((conv, follower))


def test_followers_follow_each_other_to_the_end() -> None:
    found = annotate(lambda m, x: F.softmax(torch.flatten(F.max_pool2d(m.conv(x), 2), 1), 1))
    assert found.reasons() == {
        "conv2d": "conv2d",
        "max_pool2d": "max_pool2d",
        "flatten": "flatten",
        "softmax": "(no-pattern)",
    }


def test_cat_joins_what_is_quantized() -> None:
    found = annotate(lambda m, x: torch.cat([m.conv(x), x + x, m.conv(x)], 1))
    first, cat = found.node("conv2d"), found.node("cat")
    shared = SharedQuantizationSpec((first, cat))
    assert found.inputs("cat") == {"conv2d": ACTIVATION, "add": shared, "conv2d_1": shared}
    assert found["cat"].output_qspec == shared


@pytest.mark.parametrize(
    ("function", "operator", "reason"),
    [
        (lambda m, y: F.max_pool2d(y, 2, 3), "max_pool2d", "stride-exceeds-kernel"),
        (lambda m, y: F.max_pool2d(y, (3, 1), (1, 2)), "max_pool2d", "stride-exceeds-kernel"),
        (lambda m, y: F.adaptive_avg_pool2d(y, 2), "adaptive_avg_pool2d", "not-the-mean-of-an-image"),
        (lambda m, y: y.mean((2, 3)), "mean", "not-the-mean-of-an-image"),
        (lambda m, y: y.mean((1, 2), keepdim=True), "mean", "not-the-mean-of-an-image"),
        (lambda m, y: y[:, ::2], "slice_1", "strided-slice"),
        (lambda m, y: torch.cat([y, y]), "cat", "concatenation-of-one-tensor"),
        (lambda m, y: torch.cat([y, y.sin()]), "cat", "float-input"),
        (lambda m, y: F.avg_pool2d(y, 2), "avg_pool2d", "no-pattern"),
    ],
)
def test_followers_that_xnnpack_does_not_have(
    function: Callable[..., Tensor], operator: str, reason: str
) -> None:
    found = annotate(lambda m, x: function(m, m.conv(x)))
    assert found.reasons()[operator] == f"({reason})"
    assert get_annotation(found.node(operator)) is None


def test_slices_of_sizes_known_at_run_time_only_stay_float() -> None:
    dim = torch.export.Dim.DYNAMIC
    found = annotate(lambda m, x: m.conv(x)[:, 1:], X, dynamic_shapes={"inputs": ({0: dim},)})
    assert found.reasons()["slice_1"] == "(dynamic-shape)"
    assert found.reasons()["conv2d"] == "conv2d"


# Modes.


def test_dynamic_quantizes_linear_only() -> None:
    found = annotate(
        lambda m, x: (F.relu(m.linear(x)), m.conv(x), x + x, torch.flatten(m.linear(x))), config=DYNAMIC
    )
    reasons = found.reasons()
    assert {name for name, reason in reasons.items() if not reason.startswith("(")} == {"linear", "linear_1"}
    assert reasons["conv2d"] == reasons["add"] == reasons["relu"] == reasons["flatten"] == "(static-only)"
    assert found.inputs("linear") == {"inputs_0": DYNAMIC.input_activation, "linear_weight": DYNAMIC.weight}
    assert found["linear"].output_qspec is None


# Recurrent layers.


class Recurrent(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 3, **options)
        self.linear = nn.Linear(3 * (2 if options.get("bidirectional") else 1), 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x, h)
        return self.linear(y), h


def recurrent(config: QuantizationConfig, dtype: torch.dtype = torch.float32, **options: Any) -> Annotated:
    states = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    inputs = torch.zeros(5, 2, 4, dtype=dtype), torch.zeros(states, 2, 3, dtype=dtype)
    exported = torch.export.export(Recurrent(**options).eval().to(dtype), inputs).module()
    assert isinstance(exported, GraphModule)
    context = PassContext(quantizer=XNNPACKQuantizer().set_global(config))
    return Annotated(PassManager().run(exported, Pipeline((Normalize(), Annotate())), context).graph, context)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"num_layers": 2},
        {"bidirectional": True},
        {"num_layers": 3, "bidirectional": True},
    ],
)
def test_what_goes_into_a_gru_is_quantized_and_its_weights_are_not(options: dict[str, Any]) -> None:
    found = recurrent(STATIC, **options)
    assert found.inputs("gru") == {"x": ACTIVATION, "h": ACTIVATION}
    assert found["gru"].output_qspec is None
    assert found.reasons()["gru"] == "gru-inputs"
    assert found.reasons()["linear"] == "linear"


def test_a_gru_that_another_quantizer_has_taken_is_left_to_it() -> None:
    exported = torch.export.export(Recurrent().eval(), (torch.zeros(5, 2, 4), torch.zeros(1, 2, 3))).module()
    assert isinstance(exported, GraphModule)
    both = [XNNPACKQuantizer().set_global(STATIC), XNNPACKQuantizer().set_global(STATIC)]
    both[1].set_module_name("gru", None)
    context = PassContext(quantizer=ComposableQuantizer(both))
    graph = PassManager().run(exported, Pipeline((Normalize(), Annotate())), context).graph
    assert Annotated(graph, context).reasons()["gru"] == "gru-inputs"


def test_grus_that_stay_float() -> None:
    assert recurrent(DYNAMIC).reasons()["gru"] == "(static-only)"
    assert recurrent(STATIC, torch.float64).reasons()["gru"] == "(activation-not-float32)"
    exported = torch.export.export(Recurrent().eval(), (torch.zeros(5, 2, 4), torch.zeros(1, 2, 3))).module()
    assert isinstance(exported, GraphModule)
    quantizer = XNNPACKQuantizer().set_global(STATIC).set_object_type(nn.GRU, None)
    context = PassContext(quantizer=quantizer)
    graph = PassManager().run(exported, Pipeline((Normalize(), Annotate())), context).graph
    assert Annotated(graph, context).reasons()["gru"] == "(not-configured)"
