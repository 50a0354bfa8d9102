"""Random graphs with random sharing against an oracle: the bare rules, applied until nothing changes."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.errors import SharingError
from lowbit.ir.annotation import QuantizationAnnotation, get_annotation, set_annotation
from lowbit.ir.location import describe_point
from lowbit.ir.sharing import resolve_sharing
from lowbit.ir.specs import (
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
    spec_key,
)
from torch.fx import Graph, Node

aten = torch.ops.aten
INT8 = QuantizationSpec(torch.int8, torch.nn.Identity)
PALETTE = [
    INT8,
    attrs.evolve(INT8),
    attrs.evolve(INT8, observer_or_fake_quant_ctr=torch.nn.Flatten),
    attrs.evolve(INT8, quant_min=-127, quant_max=127),
    FixedQParamsQuantizationSpec(torch.int8, 0.5, 0),
]

Specs = dict[EdgeOrNode, QuantizationSpecBase]


@st.composite
def graphs(draw: st.DrawFn, *, healthy: bool) -> tuple[Graph, Specs]:
    """A graph and its annotated points; where not healthy, anchors may be cyclic or not annotated."""
    graph = Graph()
    nodes = [graph.placeholder("x0")]
    for i in range(1, draw(st.integers(2, 7))):
        inputs = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))
        nodes.append(graph.call_function(aten.cat.default, (inputs,), name=f"n{i}"))
    points: list[EdgeOrNode] = []
    for node in nodes:
        points += [*((i, node) for i in node.all_input_nodes), node]

    specs: Specs = {}
    chosen = draw(st.permutations(points))[: draw(st.integers(1, len(points)))]
    for i, point in enumerate(chosen):
        # An anchor among those chosen before makes a forest; any other may close a cycle or dangle.
        anchors = chosen[:i] if healthy else points
        shared = anchors and draw(st.integers(0, 2)) > 0
        specs[point] = (
            SharedQuantizationSpec(draw(st.sampled_from(anchors)))
            if shared
            else draw(st.sampled_from(PALETTE))
        )
    for node in nodes:
        inputs = {i: specs[i, node] for i in node.all_input_nodes if (i, node) in specs}
        set_annotation(node, QuantizationAnnotation(inputs, specs.get(node), draw(st.booleans())))
    return graph, specs


def anchor_of(spec: QuantizationSpecBase | None) -> EdgeOrNode | None:
    return spec.edge_or_node if isinstance(spec, SharedQuantizationSpec) else None


def resolved(specs: Specs) -> Specs:
    """The concrete spec of every point that has one: hand specs on from anchors until nothing changes."""
    known = {point: spec for point, spec in specs.items() if anchor_of(spec) is None}
    while True:
        more = {p: known[a] for p, s in specs.items() if p not in known and (a := anchor_of(s)) in known}
        if not more:
            return known
        known |= more


def linked(a: EdgeOrNode, b: EdgeOrNode, specs: Specs, known: Specs) -> bool:
    if anchor_of(specs[a]) == b or anchor_of(specs[b]) == a:
        return True

    def tensor_if_willing(point: EdgeOrNode) -> Node | None:
        if isinstance(point, Node):
            return point
        annotation = get_annotation(point[1])
        assert annotation is not None
        return point[0] if annotation.allow_implicit_sharing else None

    tensor = tensor_if_willing(a)
    same_spec = spec_key(known[a]) == spec_key(known[b])
    return tensor is not None and tensor is tensor_if_willing(b) and same_spec


def sharing(specs: Specs) -> dict[EdgeOrNode, frozenset[EdgeOrNode]]:
    """For each point, those it shares with: the transitive closure of all pairs."""
    known = resolved(specs)
    shares = {p: frozenset(q for q in specs if p == q or linked(p, q, specs, known)) for p in specs}
    while True:
        wider = {p: frozenset().union(*(shares[q] for q in with_p)) for p, with_p in shares.items()}
        if wider == shares:
            return shares
        shares = wider


@settings(max_examples=300, deadline=None)
@given(graphs(healthy=True))
def test_groups_are_the_transitive_closure_of_the_rules(case: tuple[Graph, Specs]) -> None:
    graph, specs = case
    result = resolve_sharing(graph)
    expected = sharing(specs)
    known = resolved(specs)
    for point in specs:
        group = result.group_of(point)
        assert group is not None
        assert frozenset(group.points) == expected[point]
        assert spec_key(group.spec) == spec_key(known[point])
    assert sum(len(group.points) for group in result.groups) == len(specs)


@settings(max_examples=300, deadline=None)
@given(graphs(healthy=True), st.data())
def test_why_is_a_chain_of_true_links(case: tuple[Graph, Specs], data: st.DataObject) -> None:
    graph, specs = case
    result = resolve_sharing(graph)
    known = resolved(specs)
    a, b = (data.draw(st.sampled_from(list(specs))) for _ in range(2))
    if b not in sharing(specs)[a]:
        with pytest.raises(SharingError, match="do not share"):
            result.why(a, b)
        return
    at = a
    for link in result.why(a, b):
        assert at in (link.a, link.b)
        assert linked(link.a, link.b, specs, known)
        at = link.b if at == link.a else link.a
    assert at == b


@settings(max_examples=300, deadline=None)
@given(graphs(healthy=False))
def test_every_cycle_and_bad_anchor_is_reported_and_nothing_else(case: tuple[Graph, Specs]) -> None:
    graph, specs = case
    known = resolved(specs)
    failed = [point for point in specs if point not in known]
    if not failed:
        assert len(resolve_sharing(graph).groups) == len(set(sharing(specs).values()))
        return
    with pytest.raises(SharingError) as caught:
        resolve_sharing(graph)
    text = str(caught.value)

    dangling = {a for point in failed if (a := anchor_of(specs[point])) not in specs}
    cycles: set[frozenset[EdgeOrNode]] = set()
    for point in failed:
        seen: list[EdgeOrNode] = []
        at: EdgeOrNode | None = point
        while at in specs and at not in seen:
            seen.append(at)
            at = anchor_of(specs[at])
        if at == point:
            cycles.add(frozenset(seen))
    assert text.count(": a cycle") == len(cycles)
    assert text.count("which is not annotated") == len(dangling)
    for point in failed:
        anchor = anchor_of(specs[point])
        assert anchor is not None
        # The step from each failed point to its anchor stands in some chain, at its start or inside.
        assert f"{describe_point(point)} shares with {describe_point(anchor)}" in text.replace(", which", "")
