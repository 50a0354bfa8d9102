"""Which points share, and why."""

from __future__ import annotations

import functools
import itertools

import attrs
import pytest
import torch
from lowbit.errors import AnnotationError, SharingError
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.sharing import LinkReason, resolve_sharing
from lowbit.ir.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from torch.fx import Graph, Node

aten = torch.ops.aten


class ObserverA(torch.nn.Module):
    pass


class ObserverB(torch.nn.Module):
    pass


INT8 = QuantizationSpec(torch.int8, ObserverA, -128, 127, torch.per_tensor_affine)


def annotate(
    node: Node,
    inputs: dict[Node, QuantizationSpecBase | None] | None = None,
    output: QuantizationSpecBase | None = None,
    *,
    implicit: bool = True,
) -> None:
    set_annotation(node, QuantizationAnnotation(inputs or {}, output, implicit))


def partition(graph: Graph) -> list[list[object]]:
    return [list(group.points) for group in resolve_sharing(graph).groups]


def derive(observers: list[object]) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("resolving derives nothing")


def conv_cat() -> tuple[Graph, Node, Node, Node]:
    graph = Graph()
    x, w1, w2 = (graph.placeholder(name) for name in ("x", "w1", "w2"))
    conv1 = graph.call_function(aten.conv2d.default, (x, w1), name="conv1")
    conv2 = graph.call_function(aten.conv2d.default, (x, w2), name="conv2")
    cat = graph.call_function(aten.cat.default, ([conv1, conv2], 1), name="cat")
    graph.output(cat)
    return graph, conv1, conv2, cat


def fan_out(consumers: int) -> tuple[Graph, Node, list[Node]]:
    graph = Graph()
    x = graph.placeholder("x")
    relus = [graph.call_function(aten.relu.default, (x,), name=f"relu{i}") for i in range(consumers)]
    graph.output(tuple(relus))
    return graph, x, relus


def test_the_tutorials_conv_conv_cat_is_one_group() -> None:
    graph, conv1, conv2, cat = conv_cat()
    annotate(conv1, output=INT8)
    annotate(conv2, output=INT8)
    shared = SharedQuantizationSpec((conv1, cat))
    annotate(cat, {conv1: INT8, conv2: shared}, shared)

    result = resolve_sharing(graph)
    assert [group.points for group in result.groups] == [(conv1, conv2, (conv1, cat), (conv2, cat), cat)]
    assert result.groups[0].spec is INT8
    assert result.group_of(conv2) is result.groups[0]
    assert [link.reason.value for link in result.why(conv1, conv2)] == ["implicit", "explicit", "implicit"]
    assert result.explain(conv1, conv2) == (
        "output of %conv1 and output of %conv2 share:\n"
        "  edge %conv1 → %cat and output of %conv1 carry %conv1 with equal specs (implicit)\n"
        "  edge %conv2 → %cat is annotated to share with edge %conv1 → %cat (explicit)\n"
        "  edge %conv2 → %cat and output of %conv2 carry %conv2 with equal specs (implicit)"
    )


def test_an_unannotated_graph_has_no_groups() -> None:
    graph, x, _ = fan_out(2)
    result = resolve_sharing(graph)
    assert result.groups == result.creation_order == ()
    assert result.group_of(x) is None


def test_groups_come_in_graph_order_of_their_first_points() -> None:
    graph, conv1, conv2, cat = conv_cat()
    x = conv1.args[0]
    assert isinstance(x, Node)
    annotate(conv1, {x: INT8}, FixedQParamsQuantizationSpec(torch.int8, 0.5, 0))
    annotate(conv2, {x: INT8}, INT8)
    annotate(cat, {conv1: SharedQuantizationSpec(conv2)})
    result = resolve_sharing(graph)
    assert [(g.index, g.points) for g in result.groups] == [
        (0, ((x, conv1), (x, conv2))),
        (1, (conv1,)),
        (2, (conv2, (conv1, cat))),
    ]


def test_consumers_share_without_an_annotated_producer() -> None:
    graph, x, (a, b) = fan_out(2)
    annotate(a, {x: INT8})
    annotate(b, {x: attrs.evolve(INT8)})
    assert partition(graph) == [[(x, a), (x, b)]]


def test_different_specs_on_one_tensor_stay_separate() -> None:
    graph, x, (a, b, c) = fan_out(3)
    other = attrs.evolve(INT8, quant_min=-127)
    annotate(x, output=INT8)
    annotate(a, {x: other})
    annotate(b, {x: INT8})
    annotate(c, {x: other})
    assert partition(graph) == [[x, (x, b)], [(x, a), (x, c)]]


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": torch.uint8, "quant_min": 0},
        {"is_dynamic": True},
        {"quant_min": -127},
        {"quant_max": 126},
        {"qscheme": torch.per_tensor_symmetric},
        {"ch_axis": 1},
        {"observer_or_fake_quant_ctr": ObserverB},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_different_field_keeps_points_separate(change: dict[str, object]) -> None:
    graph, x, (a,) = fan_out(1)
    annotate(x, output=INT8)
    annotate(a, {x: attrs.evolve(INT8, **change)})
    result = resolve_sharing(graph)
    assert len(result.groups) == 2
    with pytest.raises(SharingError, match=f"do not share: their specs differ in {', '.join(change)}"):
        result.why(x, (x, a))


def test_peer_defect_specs_that_differ_in_their_observer_constructor_are_merged() -> None:
    graph, x, (a, b, c) = fan_out(3)
    first = attrs.evolve(INT8, observer_or_fake_quant_ctr=functools.partial(ObserverA, eps=2**-12))
    same = attrs.evolve(INT8, observer_or_fake_quant_ctr=functools.partial(ObserverA, eps=2**-12))
    second = attrs.evolve(INT8, observer_or_fake_quant_ctr=functools.partial(ObserverA, eps=2**-8))
    annotate(x, output=first)
    annotate(a, {x: second})
    annotate(b, {x: same})
    annotate(c, {x: second})
    result = resolve_sharing(graph)
    assert [group.points for group in result.groups] == [(x, (x, b)), ((x, a), (x, c))]
    assert [group.spec for group in result.groups] == [first, second]
    with pytest.raises(SharingError, match="their specs differ in observer_or_fake_quant_ctr"):
        result.why(x, (x, a))


def test_fixed_specs_share_when_equal() -> None:
    graph, x, (a, b) = fan_out(2)
    annotate(x, output=FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0))
    annotate(a, {x: FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0)})
    annotate(b, {x: FixedQParamsQuantizationSpec(torch.uint8, 1 / 128, 0)})
    assert partition(graph) == [[x, (x, a)], [(x, b)]]


def test_equal_specs_of_two_tensors_do_not_share() -> None:
    graph, conv1, conv2, _ = conv_cat()
    annotate(conv1, output=INT8)
    annotate(conv2, output=INT8)
    result = resolve_sharing(graph)
    assert len(result.groups) == 2
    with pytest.raises(SharingError, match="no chain of annotations links the two tensors"):
        result.why(conv1, conv2)


def test_an_edge_that_refuses_implicit_sharing_stays_alone() -> None:
    graph, x, (a, b) = fan_out(2)
    annotate(x, output=INT8)
    annotate(a, {x: INT8}, implicit=False)
    annotate(b, {x: INT8})
    result = resolve_sharing(graph)
    assert [group.points for group in result.groups] == [(x, (x, b)), ((x, a),)]
    with pytest.raises(SharingError, match=r"the annotation of %relu0 has allow_implicit_sharing=False"):
        result.why(x, (x, a))


def test_an_edge_that_refuses_implicit_sharing_may_share_explicitly() -> None:
    graph, x, (a, b, c) = fan_out(3)
    annotate(x, output=INT8)
    annotate(a, {x: SharedQuantizationSpec(x)}, implicit=False)
    annotate(b, {x: attrs.evolve(INT8, quant_min=-127)}, implicit=False)
    annotate(c, output=SharedQuantizationSpec((x, b)))
    assert partition(graph) == [[x, (x, a)], [(x, b), c]]


def test_an_output_may_be_shared_whatever_its_own_annotation_says_of_its_inputs() -> None:
    graph, x, (a, _) = fan_out(2)
    last = graph.call_function(aten.neg.default, (a,), name="neg")
    annotate(a, {x: INT8}, INT8, implicit=False)
    annotate(last, {a: INT8})
    assert partition(graph) == [[(x, a)], [a, (a, last)]]


def test_implicit_sharing_looks_at_the_resolved_spec() -> None:
    graph, conv1, conv2, cat = conv_cat()
    annotate(conv1, output=INT8)
    annotate(conv2, output=SharedQuantizationSpec(conv1))
    annotate(cat, {conv2: INT8})
    assert partition(graph) == [[conv1, conv2, (conv2, cat)]]


def test_peer_defect_shared_spec_whose_anchor_comes_later() -> None:
    graph, conv1, conv2, cat = conv_cat()
    annotate(conv1, output=SharedQuantizationSpec((conv2, cat)))
    annotate(cat, {conv2: SharedQuantizationSpec(cat)}, INT8)
    result = resolve_sharing(graph)
    assert [group.points for group in result.groups] == [(conv1, (conv2, cat), cat)]
    assert result.groups[0].spec is INT8


@pytest.mark.parametrize("backwards", [True, False])
def test_peer_defect_a_chain_of_5000_needs_no_recursion(backwards: bool) -> None:
    graph, _, relus = fan_out(5000)
    order = relus if backwards else relus[::-1]
    annotate(order[0], output=INT8)
    for anchor, node in itertools.pairwise(order):
        annotate(node, output=SharedQuantizationSpec(anchor))
    result = resolve_sharing(graph)
    assert [group.points for group in result.groups] == [tuple(relus)]
    assert result.groups[0].spec is INT8
    assert len(result.links) == 4999
    assert len(result.why(relus[0], relus[-1])) == 4999


def test_one_tensor_with_many_consumers_has_a_link_a_consumer() -> None:
    graph, x, relus = fan_out(5000)
    annotate(x, output=INT8)
    for node in relus:
        annotate(node, {x: INT8})
    result = resolve_sharing(graph)
    assert len(result.groups) == 1
    assert len(result.links) == 5000
    assert len(result.why((x, relus[0]), (x, relus[-1]))) == 2


def test_where_a_pair_is_linked_both_ways_the_explicit_link_answers() -> None:
    graph, x, (a,) = fan_out(1)
    annotate(x, output=INT8)
    annotate(a, {x: SharedQuantizationSpec(x)})
    result = resolve_sharing(graph)
    assert [link.reason for link in result.links] == [LinkReason.EXPLICIT, LinkReason.IMPLICIT]
    assert [link.reason for link in result.why(x, (x, a))] == [LinkReason.EXPLICIT]
    assert set(result.graph.nodes) == {x, (x, a)}


def test_a_point_shares_with_itself_for_no_reason() -> None:
    graph, x, _ = fan_out(1)
    annotate(x, output=INT8)
    assert resolve_sharing(graph).why(x, x) == []


def test_why_of_a_point_that_is_not_annotated() -> None:
    graph, x, (a,) = fan_out(1)
    annotate(x, output=INT8)
    with pytest.raises(SharingError, match=r"edge %x → %relu0 is not annotated, so it shares with nothing"):
        resolve_sharing(graph).why(x, (x, a))


def test_why_not_between_two_kinds_of_spec() -> None:
    graph, x, (a,) = fan_out(1)
    annotate(x, output=INT8)
    annotate(a, {x: FixedQParamsQuantizationSpec(torch.int8, 0.5, 0)})
    with pytest.raises(SharingError, match="one has a QuantizationSpec, the other a FixedQParams"):
        resolve_sharing(graph).why(x, (x, a))


def test_derived_groups_come_after_their_sources() -> None:
    graph = Graph()
    bias, x, weight = (graph.placeholder(name) for name in ("bias", "x", "weight"))
    conv = graph.call_function(aten.conv2d.default, (x, weight, bias), name="conv")
    graph.output(conv)
    double = DerivedQuantizationSpec([bias], derive, torch.int32)
    annotate(bias, output=DerivedQuantizationSpec([weight, weight, (x, conv)], derive, torch.int32))
    annotate(weight, output=INT8)
    annotate(conv, {x: INT8, bias: double}, INT8)
    result = resolve_sharing(graph)
    assert [group.points[0] for group in result.groups] == [bias, weight, (x, conv), (bias, conv), conv]
    assert [group.index for group in result.creation_order] == [1, 2, 0, 3, 4]


def test_equal_derived_specs_on_one_tensor_share() -> None:
    graph, x, (a, b, c) = fan_out(3)
    annotate(x, output=INT8)
    annotate(a, {x: DerivedQuantizationSpec([x], derive, torch.int32)})
    annotate(b, {x: DerivedQuantizationSpec([x], derive, torch.int32)})
    annotate(c, {x: DerivedQuantizationSpec([x, x], derive, torch.int32)})
    assert partition(graph) == [[x], [(x, a), (x, b)], [(x, c)]]


def test_a_derived_spec_may_be_an_anchor() -> None:
    graph, x, (a, b) = fan_out(2)
    derived = DerivedQuantizationSpec([x], derive, torch.int32)
    annotate(x, output=INT8)
    annotate(a, output=SharedQuantizationSpec(b))
    annotate(b, output=derived)
    result = resolve_sharing(graph)
    assert [group.points for group in result.groups] == [(x,), (a, b)]
    assert result.groups[1].spec is derived


def test_bogus_edges_come_first() -> None:
    graph, x, (a, b) = fan_out(2)
    annotate(a, {b: INT8}, SharedQuantizationSpec(x))
    with pytest.raises(AnnotationError, match="from %relu1, which is not an input of it"):
        resolve_sharing(graph)


def test_the_text_of_a_result_lists_groups_and_points() -> None:
    graph, x, (a, b) = fan_out(2)
    annotate(x, output=INT8)
    annotate(a, {x: INT8}, FixedQParamsQuantizationSpec(torch.uint8, 0.5, 0))
    annotate(b, output=SharedQuantizationSpec(x))
    assert str(resolve_sharing(graph)) == (
        "group 0: QuantizationSpec torch.int8\n"
        "  output of %x\n"
        "  edge %x → %relu0\n"
        "  output of %relu1\n"
        "group 1: FixedQParamsQuantizationSpec torch.uint8\n"
        "  output of %relu0"
    )


def test_nothing_of_the_graph_is_modified() -> None:
    graph, conv1, conv2, cat = conv_cat()
    annotate(conv1, output=INT8)
    annotate(cat, {conv1: INT8, conv2: SharedQuantizationSpec(conv1)}, SharedQuantizationSpec((conv2, cat)))

    def snapshot() -> list[object]:
        return [
            (n, n.op, n.target, n.args, n.kwargs, list(n.users), {k: repr(v) for k, v in n.meta.items()})
            for n in graph.nodes
        ]

    before = snapshot()
    resolve_sharing(graph).why(conv1, cat)
    assert snapshot() == before
