from __future__ import annotations

import pytest
import torch
from lowbit.errors import AnnotationError
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.points import annotated_points, as_point, owner_of, point_fault, tensor_of
from lowbit.ir.specs import QuantizationSpec, SharedQuantizationSpec
from torch.fx import Graph, Node

aten = torch.ops.aten
INT8 = QuantizationSpec(torch.int8, torch.nn.Identity)


def make_graph() -> tuple[Graph, dict[str, Node]]:
    graph = Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    relu = graph.call_function(aten.relu.default, (x,), name="relu")
    cat = graph.call_function(aten.cat.default, ([y, relu, y], 1), name="cat")
    clamp = graph.call_function(aten.clamp.Tensor, (cat,), {"min": x}, name="clamp")
    graph.output(clamp)
    return graph, {node.name: node for node in graph.nodes}


def test_points_come_in_graph_order_whatever_the_order_of_the_map() -> None:
    graph, n = make_graph()
    set_annotation(n["cat"], QuantizationAnnotation({n["relu"]: INT8, n["y"]: INT8}, INT8))
    set_annotation(n["relu"], QuantizationAnnotation({n["x"]: INT8}))
    set_annotation(n["x"], QuantizationAnnotation(output_qspec=INT8))

    assert [point for point, _ in annotated_points(graph)] == [
        n["x"],
        (n["x"], n["relu"]),
        (n["y"], n["cat"]),  # read twice, one point
        (n["relu"], n["cat"]),
        n["cat"],
    ]


def test_a_producer_in_kwargs_is_a_point() -> None:
    # PEER: "Node in kwargs" crashes there.
    graph, n = make_graph()
    set_annotation(n["clamp"], QuantizationAnnotation({n["x"]: INT8}))
    assert annotated_points(graph) == [((n["x"], n["clamp"]), INT8)]


def test_none_is_no_point() -> None:
    graph, n = make_graph()
    set_annotation(n["cat"], QuantizationAnnotation({n["relu"]: None, n["y"]: INT8}, None))
    assert annotated_points(graph) == [((n["y"], n["cat"]), INT8)]


def test_all_bogus_annotations_are_reported_at_once() -> None:
    graph, n = make_graph()
    other = Graph().placeholder("elsewhere")
    set_annotation(n["relu"], QuantizationAnnotation({n["y"]: INT8}))
    set_annotation(n["cat"], QuantizationAnnotation({other: INT8, "y": None}, torch.int8))
    n["clamp"].meta["quantization_annotation"] = {"output_qspec": INT8}
    n["clamp"].meta["stack_trace"] = 'File "model.py", line 7, in forward\n    return x.clamp(min=y)'

    with pytest.raises(AnnotationError) as caught:
        annotated_points(graph)
    text = str(caught.value)
    assert text.startswith("5 problems with the annotations of the graph\n1. %relu is annotated at")
    assert "%relu is annotated at an input edge from %y, which is not an input of it" in text
    assert "which are: %x\n" in text
    assert "%cat is annotated at an input edge from %elsewhere, which" in text
    assert "%cat is annotated at an input edge from a str, which" in text
    assert "output of %cat is annotated with a torch.dtype, which is not a spec" in text
    assert "%clamp is annotated with a builtins.dict, not with a QuantizationAnnotation" in text
    assert "model.py:7: return x.clamp(min=y)" in text


def test_a_single_bogus_edge_has_its_place_and_hint() -> None:
    graph, n = make_graph()
    set_annotation(n["relu"], QuantizationAnnotation({n["y"]: INT8}))
    with pytest.raises(AnnotationError) as caught:
        annotated_points(graph)
    assert caught.value.where == ("%relu (aten.relu.default)",)
    assert "%x" in caught.value.hint


def test_tensor_and_owner_of_a_point() -> None:
    _, n = make_graph()
    edge = (n["x"], n["relu"])
    assert (tensor_of(edge), owner_of(edge)) == (n["x"], n["relu"])
    assert (tensor_of(n["x"]), owner_of(n["x"])) == (n["x"], n["x"])


def test_only_nodes_and_pairs_of_nodes_are_points() -> None:
    _, n = make_graph()
    x, relu = n["x"], n["relu"]
    assert as_point(x) is x
    assert as_point((x, relu)) == (x, relu)
    for value in ([x, relu], (x,), (x, relu, x), (x, "relu"), "x", None):
        assert as_point(value) is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda n, other: "relu", "is not a point"),
        (lambda n, other: other, "names %elsewhere, a node that is not in this graph"),
        (lambda n, other: (n["x"], other), "names %elsewhere, a node that is not in this graph"),
        (lambda n, other: (n["y"], n["relu"]), "is not an edge: %y is not an input of %relu"),
        (lambda n, other: n["x"], "is not annotated"),
        (lambda n, other: (n["x"], n["relu"]), None),
    ],
)
def test_point_fault_says_what_is_wrong(value, reason) -> None:
    graph, n = make_graph()
    spec = SharedQuantizationSpec(n["x"])
    set_annotation(n["relu"], QuantizationAnnotation({n["x"]: spec}))
    annotated = dict(annotated_points(graph))
    fault = point_fault(value(n, Graph().placeholder("elsewhere")), set(graph.nodes), annotated)
    assert (fault and fault.reason) == reason


def test_a_swapped_edge_is_recognized() -> None:
    graph, n = make_graph()
    fault = point_fault((n["relu"], n["x"]), set(graph.nodes), {})
    assert fault is not None
    assert fault.hint == "swap the two: the edge is (%x, %relu)"
