"""The rules of each stage: a graph that keeps them passes, and each rule broken is reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lowbit.errors import AnnotationError, StageError
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.observers import MinMaxObserver
from lowbit.ir.specs import QuantizationSpec
from lowbit.ir.stages import Stage, get_stage, set_stage
from lowbit.ir.verifiers import is_observer, verify
from torch import nn
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
INT8 = QuantizationSpec(torch.int8, MinMaxObserver)
QDQ_STAGES = (Stage.QDQ, Stage.REFERENCE, Stage.LOWERED)


def make(build: Callable[[Graph, Node], Node], **attributes: object) -> GraphModule:
    """A module of one input whose graph ``build`` continues."""
    root = nn.Module()
    for name, value in attributes.items():
        setattr(root, name, value)
    graph = Graph()
    graph.output(build(graph, graph.placeholder("x")))
    return GraphModule(root, graph)


def quantized(graph: Graph, x: Node, *, scale=0.5, zero_point=0, low=0, high=255, then=None) -> Node:
    arguments = (scale, zero_point, low, high, torch.uint8)
    q = graph.call_function(qd.QUANTIZE_PER_TENSOR, (x, *arguments))
    return graph.call_function(qd.DEQUANTIZE_PER_TENSOR, (q, *(then or arguments)))


@pytest.mark.parametrize("stage", Stage)
def test_a_plain_float_graph_breaks_no_rule(stage: Stage) -> None:
    verify(make(lambda graph, x: graph.call_function(aten.relu.default, (x,))), stage)


@pytest.mark.parametrize("stage", Stage)
def test_an_input_behind_its_user_is_found(stage: Stage) -> None:
    gm = make(lambda graph, x: graph.call_function(aten.relu.default, (x,)))
    x, relu, _ = gm.graph.nodes
    relu.append(x)
    with pytest.raises(StageError, match="its input %x stands after it") as caught:
        verify(gm, stage)
    assert f"rules of stage {stage.name}" in str(caught.value)
    assert "%relu_default (aten.relu.default)" in str(caught.value)
    assert caught.value.hint


def test_an_input_of_another_graph_is_found() -> None:
    gm = make(lambda graph, x: graph.call_function(aten.relu.default, (x,)))
    relu = list(gm.graph.nodes)[1]
    relu.args = (Graph().placeholder("stranger"),)
    with pytest.raises(StageError, match="its input %stranger belongs to another graph"):
        verify(gm, Stage.FLOAT)


@pytest.mark.parametrize("op", ["get_attr", "call_module"])
def test_a_missing_attribute_is_found(op: str) -> None:
    gm = make(lambda graph, x: x)
    with gm.graph.inserting_before(gm.graph.output_node()):
        gm.graph.create_node(op, "layer.weight", ())
    with pytest.raises(StageError, match=r"no attribute 'layer\.weight'"):
        verify(gm, Stage.FLOAT)


def test_all_broken_rules_are_reported_at_once() -> None:
    def build(graph: Graph, x: Node) -> Node:
        return quantized(graph, x, scale=0.0, zero_point=300)

    gm = make(build)
    gm.graph.create_node("get_attr", "nothing")
    with pytest.raises(StageError) as caught:
        verify(gm, Stage.QDQ)
    text = str(caught.value)
    # An attribute, and the scale and zero point of two nodes.
    assert "(and 4 more)" in text
    assert "'nothing'" in text
    assert text.count("scale 0.0 is not positive and finite") == 2
    assert text.count("zero point 300 is outside [0, 255]") == 2


def test_the_branches_of_cond_are_checked_too() -> None:
    class Model(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda y: y.relu(), lambda y: y.neg(), (x,))

    gm = torch.export.export(Model(), (torch.ones(2),)).module()
    verify(gm, Stage.FLOAT)
    body = gm.true_graph_0
    x, relu, _ = body.graph.nodes
    relu.append(x)
    with pytest.raises(StageError, match=f"at %{relu.name}: its input %{x.name} stands after it"):
        verify(gm, Stage.FLOAT)


def test_annotations_are_checked_where_they_are_the_stage() -> None:
    gm = make(lambda graph, x: graph.call_function(aten.relu.default, (x,)))
    x, relu, _ = gm.graph.nodes
    set_annotation(relu, QuantizationAnnotation({x: INT8}))
    verify(gm, Stage.ANNOTATED)
    set_annotation(x, QuantizationAnnotation({relu: INT8}))
    verify(gm, Stage.FLOAT)
    with pytest.raises(AnnotationError, match="%x is annotated at an input edge from %relu"):
        verify(gm, Stage.ANNOTATED)


def test_observers_take_one_tensor() -> None:
    def build(graph: Graph, x: Node) -> Node:
        return graph.call_module("observer", (x,))

    gm = make(build, observer=MinMaxObserver())
    verify(gm, Stage.OBSERVED)
    call = list(gm.graph.nodes)[1]
    call.args = (call.args[0], call.args[0])
    with pytest.raises(StageError, match="an observer takes one tensor, not 2"):
        verify(gm, Stage.OBSERVED)


@pytest.mark.parametrize("stage", QDQ_STAGES)
def test_no_observer_is_left_after_conversion(stage: Stage) -> None:
    gm = make(lambda graph, x: graph.call_module("observer", (x,)), observer=MinMaxObserver())
    with pytest.raises(StageError, match="an observer is left"):
        verify(gm, stage)


@pytest.mark.parametrize("stage", [Stage.QDQ, Stage.LOWERED])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scale": 0.0}, "scale 0.0 is not"),
        ({"scale": -0.5}, "scale -0.5 is not"),
        ({"scale": float("nan")}, "scale nan is not"),
        ({"scale": float("inf")}, "scale inf is not"),
        ({"zero_point": -1}, r"zero point -1 is outside \[0, 255\]"),
        ({"zero_point": 64, "low": 0, "high": 63}, r"zero point 64 is outside \[0, 63\]"),
        ({"scale": "0.5"}, "its arguments are not a tensor, four numbers and a dtype"),
        ({"low": None}, "its arguments are not a tensor, four numbers and a dtype"),
        (
            {"then": (0.5, 1, 0, 255, torch.uint8)},
            "dequantizes with other parameters than %quantize_per_tensor",
        ),
        ({"then": (0.25, 0, 0, 255, torch.uint8)}, "dequantizes with other parameters"),
        ({"then": (0.5, 0, 0, 127, torch.uint8)}, "dequantizes with other parameters"),
    ],
)
def test_parameters_are_legal_and_agree(stage: Stage, fields, said: str) -> None:
    verify(make(quantized), stage)
    with pytest.raises(StageError, match=said):
        verify(make(lambda graph, x: quantized(graph, x, **fields)), stage)
    verify(make(lambda graph, x: quantized(graph, x, **fields)), Stage.FLOAT)


def test_quantize_and_dequantize_are_written_out_in_a_reference() -> None:
    with pytest.raises(StageError, match="it is not written out") as caught:
        verify(make(quantized), Stage.REFERENCE)
    assert "(and 1 more)" in str(caught.value)


def test_an_observer_is_what_calculates_parameters() -> None:
    class Own(nn.Module):
        def calculate_qparams(self):
            return torch.ones(1), torch.zeros(1)

    assert is_observer(MinMaxObserver())
    assert is_observer(Own())
    assert not is_observer(nn.ReLU())
    assert not is_observer(None)
    assert not is_observer(MinMaxObserver)


def test_a_graph_says_its_stage_or_shows_it() -> None:
    float_graph, qdq_graph = make(lambda graph, x: x), make(quantized)
    assert get_stage(float_graph) is Stage.FLOAT
    # A program that was saved and loaded again has lost what lowbit wrote about it.
    assert get_stage(qdq_graph) is Stage.QDQ
    for stage in Stage:
        set_stage(qdq_graph, stage)
        assert get_stage(qdq_graph) is stage


def test_a_converted_program_still_keeps_the_rules_after_it_was_exported_again() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.ones(2, 3, dtype=torch.int8))
            self.register_buffer("scale", torch.tensor([0.5, 0.25]))
            self.register_buffer("zero_point", torch.zeros(2, dtype=torch.int32))

        def forward(self, x):
            arguments = (self.scale, self.zero_point, 0, -128, 127, torch.int8)
            x = qd.QUANTIZE_PER_TENSOR(x, 0.5, 0, 0, 255, torch.uint8)
            x = qd.DEQUANTIZE_PER_TENSOR(x, 0.5, 0, 0, 255, torch.uint8)
            y = x @ qd.DEQUANTIZE_PER_CHANNEL(self.weight, *arguments).t()
            return qd.DEQUANTIZE_PER_CHANNEL(qd.QUANTIZE_PER_CHANNEL(y.t(), *arguments), *arguments)

    gm = torch.export.export(Model(), (torch.ones(4, 3),)).module()
    assert get_stage(gm) is Stage.QDQ
    verify(gm, Stage.QDQ)
