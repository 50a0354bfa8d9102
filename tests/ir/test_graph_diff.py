"""Diffs: what was touched is in them, what was not is not."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.graph_diff import GraphDiff, diff
from lowbit.ir.observers import MinMaxObserver
from lowbit.ir.snapshot import GROUPS_KEY, take_snapshot
from lowbit.ir.specs import QuantizationSpec
from torch import nn
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver)


def chain(length: int) -> GraphModule:
    """relu_1(relu_0(x)) + w, and so on."""
    root = nn.Module()
    root.w = nn.Parameter(torch.ones(1))
    graph = Graph()
    at, w = graph.placeholder("x"), graph.get_attr("w")
    for i in range(length):
        at = graph.create_node("call_function", aten.add.Tensor, (at, w), {"alpha": i}, name=f"n{i}")
    graph.output(at)
    return GraphModule(root, graph)


def names(nodes: tuple[Node, ...]) -> list[str]:
    return [node.name for node in nodes]


def by_name(gm: GraphModule) -> dict[str, Node]:
    return {node.name: node for node in gm.graph.nodes}


def test_an_unchanged_graph_has_an_empty_diff() -> None:
    gm = chain(3)
    nothing = diff(take_snapshot(gm), take_snapshot(gm))
    assert not nothing
    assert str(nothing) == ""
    assert nothing.stat == "0 added, 0 removed, 0 changed, 0 moved, 0 attributes"


def test_a_diff_as_text_shows_each_change_where_it_stands() -> None:
    gm = chain(4)
    n = by_name(gm)
    before = take_snapshot(gm)
    with gm.graph.inserting_before(n["n0"]):
        new = gm.graph.call_function(aten.relu.default, (n["x"],))
    n["n0"].args = (new, n["w"])
    n["n3"].replace_input_with(n["n2"], n["n1"])
    gm.graph.erase_node(n["n2"])
    set_annotation(n["n1"], QuantizationAnnotation(output_qspec=UINT8))
    gm.w = nn.Parameter(torch.zeros(1))
    found = diff(before, take_snapshot(gm))
    assert str(found).splitlines() == [
        "+ %relu_default = aten.relu.default(%x)",
        "- %n0 = aten.add.Tensor(%x, %w, alpha=0)",
        "+ %n0 = aten.add.Tensor(%relu_default, %w, alpha=0)",
        "- %n1 = aten.add.Tensor(%n0, %w, alpha=1)",
        "+ %n1 = aten.add.Tensor(%n0, %w, alpha=1)  {out: u8 MinMaxObserver}",
        "- %n2 = aten.add.Tensor(%n1, %w, alpha=2)",
        "- %n3 = aten.add.Tensor(%n2, %w, alpha=3)",
        "+ %n3 = aten.add.Tensor(%n1, %w, alpha=3)",
        "@ attribute w replaced",
    ]
    assert found.stat == "1 added, 1 removed, 3 changed, 0 moved, 1 attributes"


def test_the_removed_end_of_a_graph_is_shown() -> None:
    gm = chain(2)
    n = by_name(gm)
    before = take_snapshot(gm)
    gm.graph.erase_node(n["output"])
    gm.graph.erase_node(n["n1"])
    assert str(diff(before, take_snapshot(gm))).splitlines() == [
        "- %n1 = aten.add.Tensor(%n0, %w, alpha=1)",
        "- return %n1",
    ]


def test_a_node_made_anew_is_another_node() -> None:
    gm = chain(1)
    n = by_name(gm)
    before = take_snapshot(gm)
    with gm.graph.inserting_after(n["n0"]):
        again = gm.graph.node_copy(n["n0"])
    n["n0"].replace_all_uses_with(again)
    gm.graph.erase_node(n["n0"])
    found = diff(before, take_snapshot(gm))
    assert (names(found.added), names(found.removed)) == ([again.name], ["n0"])


@pytest.mark.parametrize(
    ("moves", "moved"),
    [
        ([("n0", "n4")], ["n0"]),
        ([("n4", "x")], ["n4"]),
        ([("n4", "")], ["n4"]),
        ([("n0", "n3"), ("n5", "x")], ["n0", "n5"]),
    ],
)
def test_of_all_nodes_only_the_moved_ones_are_said_to_have_moved(moves, moved) -> None:
    gm = chain(6)
    n = by_name(gm)
    before = take_snapshot(gm)
    for node, behind in moves:
        if behind:
            n[behind].append(n[node])
        else:
            n["x"].prepend(n[node])
    found = diff(before, take_snapshot(gm))
    assert sorted(names(found.moved)) == moved
    assert (found.added, found.removed, found.changed, found.attributes) == ((), (), (), ())
    assert all(line.startswith("> %") for line in found.lines)
    assert len(found.lines) == len(moved)


def test_a_write_is_told_from_a_replacement() -> None:
    gm = chain(1)
    before = take_snapshot(gm)
    with torch.no_grad():
        gm.w.zero_()
    assert diff(before, take_snapshot(gm)).lines == ("@ attribute w written into",)


def test_the_diff_of_a_nested_graph_is_part_of_it() -> None:
    class Model(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda y: y.relu(), lambda y: y.neg(), (x,))

    gm = torch.export.export(Model(), (torch.ones(2),)).module()
    before = take_snapshot(gm)
    body = gm.true_graph_0
    (relu,) = body.graph.find_nodes(op="call_function", target=aten.relu.default)
    relu.target = aten.tanh.default
    found = diff(before, take_snapshot(gm))
    assert [a.target for a in found.attributes] == ["true_graph_0"]
    assert (found.added, found.removed, found.changed, found.moved) == ((), (), (), ())
    head, old, new = found.lines
    assert head == "@ graph true_graph_0: 0 added, 0 removed, 1 changed, 0 moved, 0 attributes"
    assert old.startswith(f"    - %{relu.name}: f32[2] = aten.relu.default(")
    assert new.startswith(f"    + %{relu.name}: f32[2] = aten.tanh.default(")


@attrs.define
class Edits:
    """A graph under random edits, and what they touched."""

    gm: GraphModule
    added: set[Node] = attrs.Factory(set)
    removed: set[Node] = attrs.Factory(set)
    changed: set[Node] = attrs.Factory(set)
    moved: set[Node] = attrs.Factory(set)
    attributes: set[str] = attrs.Factory(set)

    def nodes(self) -> list[Node]:
        return [n for n in self.gm.graph.nodes if n.op == "call_function"]

    def touch(self, node: Node) -> None:
        if node not in self.added:
            self.changed.add(node)

    def set_literal(self, node: Node, data: st.DataObject) -> None:
        # 1, 1.0 and True are equal and yet different; what differs from what was there is drawn.
        values = [
            v for v in (0, 1, 2, 1.0, 0.0, -0.0, True, "a") if repr(v) != repr(node.kwargs.get("alpha"))
        ]
        node.kwargs = {"alpha": data.draw(st.sampled_from(values))}
        self.touch(node)

    def read_twice(self, node: Node, data: st.DataObject) -> None:
        node.args = (*node.args, node.args[0])
        self.touch(node)

    def set_target(self, node: Node, data: st.DataObject) -> None:
        node.target = aten.sub.Tensor if node.target is aten.add.Tensor else aten.add.Tensor
        self.touch(node)

    def annotate(self, node: Node, data: st.DataObject) -> None:
        bits = 2 + len(self.changed) + len(node.meta)
        spec = QuantizationSpec(torch.int32, MinMaxObserver, 0, 2**bits)
        annotation = node.meta.setdefault("quantization_annotation", QuantizationAnnotation())
        if annotation.output_qspec != spec:
            annotation.output_qspec = spec
            self.touch(node)

    def label(self, node: Node, data: st.DataObject) -> None:
        node.meta[GROUPS_KEY] = node.meta.get(GROUPS_KEY, "") + "g"
        self.touch(node)

    def rename(self, node: Node, data: st.DataObject) -> None:
        node.name = f"{node.name}_again"
        self.touch(node)

    def insert(self, node: Node, data: st.DataObject) -> None:
        with self.gm.graph.inserting_after(node):
            self.added.add(self.gm.graph.call_function(aten.add.Tensor, (node, 1)))

    def erase(self, node: Node, data: st.DataObject) -> None:
        for user in list(node.users):
            user.replace_input_with(node, node.args[0])
            self.touch(user)
        self.gm.graph.erase_node(node)
        for record in (self.changed, self.moved):
            record.discard(node)
        if node in self.added:
            self.added.remove(node)
        else:
            self.removed.add(node)

    def move(self, node: Node, data: st.DataObject) -> None:
        behind = data.draw(st.sampled_from([n for n in self.gm.graph.nodes if n is not node]))
        behind.append(node)
        if node not in self.added:
            self.moved.add(node)

    def replace_attribute(self, node: Node, data: st.DataObject) -> None:
        self.gm.w = nn.Parameter(torch.ones(1))
        self.attributes.add("w")

    def write_attribute(self, node: Node, data: st.DataObject) -> None:
        with torch.no_grad():
            self.gm.w.add_(1)
        self.attributes.add("w")

    def write_other_metadata(self, node: Node, data: st.DataObject) -> None:
        node.meta["val"] = torch.ones(1)
        node.meta["stack_trace"] = "elsewhere"


EDITS = [name for name, value in vars(Edits).items() if callable(value) and not name.startswith("_")]
EDITS = [name for name in EDITS if name not in ("nodes", "touch")]


def state(node: Node) -> object:
    """All that counts about a node, so that 1, 1.0 and True differ, and nodes are those they are."""

    def exact(value: object) -> object:
        if isinstance(value, (tuple, list)):
            return tuple(map(exact, value))
        return id(value) if isinstance(value, Node) else repr(value)

    annotation = node.meta.get("quantization_annotation")
    return (
        *(node.name, node.target, exact(node.args), exact(tuple(node.kwargs.items()))),
        *(annotation and annotation.output_qspec, node.meta.get(GROUPS_KEY)),
    )


def order_kept(before: list[Node], after: list[Node], without: set[Node]) -> bool:
    kept = [n for n in after if n in set(before) and n not in without]
    return [n for n in before if n in set(kept)] == kept


@settings(max_examples=300)
@given(data=st.data())
def test_touched_nodes_always_appear_and_others_never(data: st.DataObject) -> None:
    gm = chain(data.draw(st.integers(1, 8), "length"))
    old = list(gm.graph.nodes)
    before, states = take_snapshot(gm), {node: state(node) for node in old}
    edits = Edits(gm)
    for name in data.draw(st.lists(st.sampled_from(EDITS), min_size=1, max_size=8), "edits"):
        if edits.nodes():
            getattr(edits, name)(data.draw(st.sampled_from(edits.nodes())), data)
    after = take_snapshot(gm)
    found = diff(before, after)

    assert set(found.added) == edits.added
    assert set(found.removed) == edits.removed
    assert set(found.changed) == {
        n for n, was in states.items() if n not in edits.removed and state(n) != was
    }
    assert set(found.changed) <= edits.changed
    # Of two nodes that changed places either may be said to have moved, but no more than were moved.
    assert len(found.moved) <= len(edits.moved)
    assert order_kept(old, list(gm.graph.nodes), set(found.moved))
    assert {a.target for a in found.attributes} == edits.attributes
    assert bool(found) is not before.same_as(after)
    check_lines(found)


def check_lines(found: GraphDiff) -> None:
    signs = [line[0] for line in found.lines]
    assert signs.count("+") == len(found.added) + len(found.changed)
    assert signs.count("-") == len(found.removed) + len(found.changed)
    assert signs.count(">") == len([n for n in found.moved if n not in found.changed])
    assert signs.count("@") == len(found.attributes)


@settings(max_examples=100)
@given(st.permutations(range(9)))
def test_moves_are_as_few_as_can_be(order: list[int]) -> None:
    gm = chain(9)
    n = by_name(gm)
    before = take_snapshot(gm)
    for i in order:
        n["output"].prepend(n[f"n{i}"])
    found = diff(before, take_snapshot(gm))
    # The longest run that stays in order, by the quadratic rule.
    best = [1] * 9
    for j in range(9):
        best[j] += max((best[i] for i in range(j) if order[i] < order[j]), default=0)
    assert len(found.moved) == 9 - max(best)
