"""Every rule fires where it should, however the model was written and exported."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import DerivedQuantizationSpec, Quantizer, convert_pt2e, decisions, prepare_pt2e
from lowbit.backends.x86_inductor.post_operators import AFTER_CONVOLUTION, AFTER_LINEAR, PostOperator
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.stages import Stage, get_stage
from lowbit.passes.reference import RULES
from torch import Tensor, nn

aten = torch.ops.aten


class Functional(nn.Module):
    """Calls a function of the input and of a weight and bias of its own."""

    def __init__(self, function: Any, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.function = function
        if shape is not None:
            self.weight = nn.Parameter(torch.randn(shape))
            self.bias = nn.Parameter(torch.randn(shape[0]))

    def forward(self, *x: Tensor) -> Tensor:
        own = (self.weight, self.bias) if hasattr(self, "weight") else ()
        return self.function(*x, *own)


class WithAddition(nn.Module):
    def __init__(self, operator: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.operator = operator
        self.after = after or nn.Identity()

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.after(other + self.operator(x))


@attrs.frozen
class Case:
    """A model, written with modules or with functions, and the rules it becomes."""

    model: Any
    shapes: list[tuple[int, ...]]
    rules: list[str]


IMAGE = (2, 4, 6, 7)
CASES = {
    "linear": Case(lambda: nn.Linear(5, 3), [(4, 5)], ["linear"]),
    "F.linear": Case(lambda: Functional(F.linear, (3, 5)), [(4, 5)], ["linear"]),
    "linear without bias": Case(lambda: nn.Linear(5, 3, bias=False), [(2, 4, 5)], ["linear"]),
    "linear of a vector": Case(lambda: nn.Linear(5, 3), [(5,)], ["linear"]),
    "linear-relu": Case(lambda: nn.Sequential(nn.Linear(5, 3), nn.ReLU()), [(4, 5)], ["linear"]),
    "linear-hardtanh": Case(lambda: nn.Sequential(nn.Linear(5, 3), nn.Hardtanh()), [(4, 5)], ["linear"]),
    "linear-add": Case(lambda: WithAddition(nn.Linear(5, 3)), [(4, 5), (4, 3)], ["linear-add"]),
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), [(2, 4, 9)], ["conv1d"]),
    "F.conv1d": Case(lambda: Functional(F.conv1d, (6, 4, 3)), [(2, 4, 9)], ["conv1d"]),
    "conv1d-relu": Case(lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU()), [(2, 4, 9)], ["conv1d"]),
    "conv1d-add": Case(lambda: WithAddition(nn.Conv1d(4, 6, 1)), [(2, 4, 9), (2, 6, 9)], ["conv1d-add"]),
    "conv2d": Case(lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2), [IMAGE], ["conv2d"]),
    "F.conv2d": Case(lambda: Functional(F.conv2d, (6, 4, 3, 3)), [IMAGE], ["conv2d"]),
    "conv2d without batch": Case(lambda: nn.Conv2d(4, 6, 3), [IMAGE[1:]], ["conv2d"]),
    "conv2d, same": Case(lambda: nn.Conv2d(4, 6, 3, padding="same"), [IMAGE], ["conv2d"]),
    "conv2d-relu": Case(lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()), [IMAGE], ["conv2d"]),
    "conv2d-relu6": Case(lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU6()), [IMAGE], ["conv2d"]),
    "conv2d-bn-relu": Case(
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), [IMAGE], ["conv2d"]
    ),
    "conv2d-add": Case(lambda: WithAddition(nn.Conv2d(4, 4, 1)), [IMAGE, IMAGE], ["conv2d-add"]),
    "conv2d-add-relu": Case(
        lambda: WithAddition(nn.Conv2d(4, 4, 1), nn.ReLU()), [IMAGE, IMAGE], ["conv2d-add"]
    ),
    "conv2d-add, broadcast": Case(
        lambda: WithAddition(nn.Conv2d(4, 4, 1)), [IMAGE, (4, 1, 1)], ["conv2d-add"]
    ),
    "conv3d": Case(lambda: nn.Conv3d(2, 4, (2, 1, 3), groups=2), [(1, 2, 4, 4, 5)], ["conv3d"]),
    "F.conv3d": Case(lambda: Functional(F.conv3d, (4, 2, 1, 2, 2)), [(1, 2, 4, 4, 5)], ["conv3d"]),
    "conv3d-add": Case(
        lambda: WithAddition(nn.Conv3d(2, 2, 1)), [(1, 2, 2, 3, 4), (1, 2, 2, 3, 4)], ["conv3d-add"]
    ),
    "add": Case(lambda: Functional(torch.add), [(3, 4), (3, 4)], ["add"]),
    "+, broadcast": Case(lambda: Functional(lambda x, y: x + y), [(3, 4), (4,)], ["add"]),
    "x + x": Case(lambda: Functional(lambda x: x + x), [(3, 4)], ["add"]),
    "add-relu": Case(lambda: Functional(lambda x, y: F.relu(x + y)), [(3, 4), (3, 4)], ["add"]),
    "+=": Case(lambda: Functional(lambda x, y: x.clone().add_(y)), [(3, 4), (3, 4)], ["movement", "add"]),
    "mul": Case(lambda: Functional(torch.mul), [(3, 4), (3, 4)], ["mul"]),
    "mul-relu": Case(lambda: Functional(lambda x, y: (x * y).relu()), [(3, 4), (4,)], ["mul"]),
    "max_pool2d": Case(lambda: nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), [IMAGE], ["max_pool2d"]),
    "F.max_pool2d": Case(lambda: Functional(lambda x: F.max_pool2d(x, 2)), [IMAGE], ["max_pool2d"]),
    "avg_pool2d": Case(lambda: nn.AvgPool2d(3, 2, padding=1), [IMAGE], ["avg_pool2d"]),
    "avg_pool2d, windows sticking out": Case(
        lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), [IMAGE], ["avg_pool2d"]
    ),
    "avg_pool2d, padding not counted": Case(
        lambda: nn.AvgPool2d((2, 3), 2, padding=1, ceil_mode=True, count_include_pad=False),
        [IMAGE],
        ["avg_pool2d"],
    ),
    "avg_pool2d with a divisor": Case(
        lambda: nn.AvgPool2d(2, divisor_override=3), [IMAGE[1:]], ["avg_pool2d"]
    ),
    "adaptive_avg_pool2d": Case(lambda: nn.AdaptiveAvgPool2d(1), [IMAGE], ["adaptive_avg_pool2d"]),
    "F.adaptive_avg_pool2d": Case(
        lambda: Functional(lambda x: F.adaptive_avg_pool2d(x, (3, 7))), [IMAGE], ["adaptive_avg_pool2d"]
    ),
    "cat": Case(lambda: Functional(lambda x, y: torch.cat([x, y, x], 1)), [IMAGE, IMAGE], ["cat"]),
    "stack": Case(lambda: Functional(lambda x, y: torch.stack([x, y])), [(2, 3), (2, 3)], ["cat"]),
    "flatten": Case(nn.Flatten, [IMAGE], ["movement"]),
    "view": Case(lambda: Functional(lambda x: x.view(x.shape[0], -1)), [IMAGE], ["movement"]),
    "reshape": Case(lambda: Functional(lambda x: x.reshape(-1)), [IMAGE], ["movement"]),
    "permute": Case(lambda: Functional(lambda x: x.permute(0, 2, 3, 1)), [IMAGE], ["movement"]),
    "transpose": Case(lambda: Functional(lambda x: x.transpose(1, 2)), [IMAGE], ["movement"]),
    "slice": Case(lambda: Functional(lambda x: x[:, 1:3]), [(2, 4)], ["movement"]),
    "relu": Case(nn.ReLU, [(3, 4)], ["clamp"]),
    "clamp": Case(lambda: Functional(lambda x: x.clamp(max=0.5)), [(3, 4)], ["clamp"]),
}


def inputs_of(case: Case) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(shape) for shape in case.shapes]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_rule_fires(name: str, strict: bool, make_forms: Any) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    inputs = inputs_of(case)
    forms = make_forms(case.model(), *inputs, strict=strict)
    assert forms.rules == case.rules
    assert forms.float_operators() == []
    assert get_stage(forms.reference) is Stage.REFERENCE
    assert {d.status for d in forms.decisions.values()} == {"quantized"}
    targets = {node.target for node in forms.reference.graph.nodes}
    assert targets.isdisjoint(qd.QUANTIZE_OPS | qd.DEQUANTIZE_OPS)
    # 3 times what calibration saw saturates.
    for x in (inputs, [3 * x for x in inputs]):
        assert forms.steps_apart(*x) <= 1.001


def test_each_rule_has_a_case() -> None:
    tried = {rule for case in CASES.values() for rule in case.rules}
    # A change of parameters without an operator is tested below.
    assert {rule.name for rule in RULES} - tried == {"requantize"}


def test_a_change_of_parameters_alone_is_written_in_integers(make_forms: Any, specs: Any) -> None:
    model = Functional(lambda x: x.relu().flatten(1))
    x = torch.randn(3, 4)
    forms = make_forms(
        model, x, output=specs.activation(torch.int8, -128, 127), activation=specs.activation()
    )
    assert forms.rules == ["clamp", "requantize", "movement"]
    assert forms.steps_apart(x) <= 1.001


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize(
    "qscheme",
    [
        torch.per_tensor_affine,
        torch.per_tensor_symmetric,
        torch.per_channel_affine,
        torch.per_channel_symmetric,
    ],
)
@pytest.mark.parametrize("fold_quantize", [True, False])
def test_weights_of_every_scheme(
    qscheme: torch.qscheme, dtype: torch.dtype, fold_quantize: bool, make_forms: Any, specs: Any
) -> None:
    torch.manual_seed(0)
    low, high = (0, 255) if dtype is torch.uint8 else (-128, 127)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 5, 3))
    x = torch.randn(IMAGE)
    forms = make_forms(
        model,
        x,
        activation=specs.activation(dtype, low, high),
        weight=specs.weight(qscheme),
        fold_quantize=fold_quantize,
    )
    assert forms.rules == ["conv2d", "movement", "linear"]
    assert forms.float_operators() == []
    assert forms.steps_apart(x) <= 3  # steps of one layer are summed by the next


POST_OPERATORS = {
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("name", POST_OPERATORS)
def test_other_post_operators_read_the_integer_accumulator_in_float(name: str, make_forms: Any) -> None:
    torch.manual_seed(0)
    post = POST_OPERATORS[name]
    x = torch.randn(IMAGE)
    model = Functional(lambda x, w, b: post(F.conv2d(x, w, b)), (6, 4, 3, 3))
    target = getattr(aten, name).default
    forms = make_forms(model, x, leave=(target,))
    assert forms.rules == ["conv2d"]
    assert len(forms.float_operators()) == 1
    decision = forms.decisions["conv2d"]
    assert (decision.status, decision.reason) == ("quantized", "conv2d")
    assert "scaled to float32" in decision.detail
    torch.testing.assert_close(forms.reference(x), forms.qdq(x), rtol=2e-6, atol=1e-6)


class AroundPostOperator(Quantizer):
    """Quantizes what a convolution or linear reads, and what the operator behind it gives."""

    def __init__(self, specs: Any) -> None:
        self.specs = specs

    def annotate(self, model: Any) -> Any:
        (last,) = model.graph.output_node().all_input_nodes
        first = last.args[0]
        x, w = first.args[:2]
        set_annotation(first, QuantizationAnnotation({x: self.specs.activation(), w: self.specs.weight()}))
        set_annotation(last, QuantizationAnnotation({}, self.specs.activation()))
        return model


FUSED = [
    *((F.conv1d, (6, 4, 3), (2, 4, 9), post) for post in AFTER_CONVOLUTION),
    *((F.conv2d, (6, 4, 3, 3), IMAGE, post) for post in AFTER_CONVOLUTION),
    *((F.linear, (3, 5), (4, 5), post) for post in AFTER_LINEAR),
]


@pytest.mark.parametrize(
    ("function", "weight", "shape", "post"), FUSED, ids=[f"{f.__name__}-{p.name}" for f, _, _, p in FUSED]
)
def test_what_a_backend_fuses_is_in_the_reference(
    function: Any, weight: tuple[int, ...], shape: tuple[int, ...], post: PostOperator, specs: Any
) -> None:
    torch.manual_seed(0)
    model = Functional(lambda x, w, b: post.function(function(x, w, b)), weight)
    x = torch.randn(shape)
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(), AroundPostOperator(specs))
    prepared(x)
    qdq, reference = convert_pt2e(prepared), convert_pt2e(prepared, use_reference_representation=True)
    (decision,) = [d for d in decisions(reference) if d.node == function.__name__]
    assert (decision.status, decision.reason) == ("quantized", function.__name__)
    assert any(node.target is torch.ops.higher_order.out_dtype for node in reference.graph.nodes)
    (dequantize,) = qdq.graph.output_node().all_input_nodes
    for inputs in (x, 3 * x):
        assert float((reference(inputs) - qdq(inputs)).abs().max() / dequantize.args[1]) <= 1.001


def test_a_quantized_bias(make_forms: Any) -> None:
    torch.manual_seed(0)

    def bias_spec(node: Any) -> DerivedQuantizationSpec:
        x, w, _ = node.args[:3]

        def derive(observers: Any) -> tuple[Tensor, Tensor]:
            scale = observers[0].calculate_qparams()[0] * observers[1].calculate_qparams()[0]
            return scale, torch.zeros(scale.shape, dtype=torch.int32)

        return DerivedQuantizationSpec(
            derived_from=[(x, node), (w, node)],
            derive_qparams_fn=derive,
            dtype=torch.int32,
            quant_min=-(2**31),
            quant_max=2**31 - 1,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )

    x = torch.randn(4, 5)
    forms = make_forms(nn.Linear(5, 3), x, bias=bias_spec)
    assert forms.rules == ["linear"]
    assert forms.float_operators() == []
    assert forms.steps_apart(x) <= 1.001
