"""Graphs without nodes or ids in common: who is who is told by what nodes do, not by their names."""

from __future__ import annotations

import random

import pytest
import torch
from lowbit.ir.graph_diff import GraphDiff, diff
from lowbit.ir.meta import GROUPS_KEY, ID_KEY, ORIGIN_KEY
from lowbit.ir.snapshot import take_snapshot
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

aten = torch.ops.aten
BINARY = (aten.add.Tensor, aten.sub.Tensor)
UNARY = (aten.relu.default, aten.neg.default, aten.tanh.default)


def module_of(graph: Graph, w: float = 1) -> GraphModule:
    root = nn.Module()
    root.w, root.v = nn.Parameter(torch.full((1,), float(w))), nn.Parameter(torch.zeros(1))
    return GraphModule(root, graph)


def distinct(rng: random.Random, length: int) -> GraphModule:
    """A graph of which every node has a literal of its own."""
    graph = Graph()
    nodes = [graph.placeholder("x"), graph.get_attr("w"), graph.get_attr("v")]
    for i in range(length):
        read = (rng.choice(nodes[-4:]), rng.choice(nodes))
        nodes.append(graph.call_function(rng.choice(BINARY), read, {"alpha": i}))
    graph.output((nodes[-1], rng.choice(nodes)))
    return module_of(graph)


def alike(rng: random.Random, length: int) -> GraphModule:
    """A graph of many nodes that do the same."""
    graph = Graph()
    nodes = [graph.placeholder("x"), graph.get_attr("w")]
    for _ in range(length):
        nodes.append(graph.call_function(rng.choice(UNARY), (rng.choice(nodes[-4:]),)))
    graph.output((nodes[-1], rng.choice(nodes)))
    return module_of(graph)


def renumbered(gm: GraphModule, rng: random.Random) -> tuple[GraphModule, dict[Node, Node]]:
    """A graph like ``gm`` with nodes, names and tensors of its own; the names are those of other nodes."""
    names = [node.name for node in gm.graph.nodes]
    rng.shuffle(names)
    graph, copies = Graph(), {}
    for node, name in zip(gm.graph.nodes, names, strict=True):
        args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda n: copies[n])
        copies[node] = graph.create_node(node.op, node.target, args, kwargs, name=name)
    return module_of(graph), copies


def rewrite(graph: Graph, rng: random.Random, fresh: int) -> set[Node]:
    """Do something at random to one node; the nodes touched by it."""
    node = rng.choice([n for n in graph.nodes if n.op == "call_function"])
    users = list(node.users)
    match rng.choice(["retarget", "edit", "rewire", "insert", "erase"]):
        case "retarget":
            node.target = BINARY[1 - BINARY.index(node.target)]
            return {node}
        case "edit":
            node.kwargs = {"alpha": fresh}
            return {node}
        case "rewire":
            order = list(graph.nodes)
            node.args = (rng.choice(order[: order.index(node)]), node.args[1])
            return {node}
        case "insert":
            with graph.inserting_after(node):
                new = graph.call_function(rng.choice(BINARY), (node, node), {"alpha": fresh})
            for user in users:
                user.replace_input_with(node, new)
            return {new, *users}
        case _:
            for user in users:
                user.replace_input_with(node, node.args[0])
            graph.erase_node(node)
            return {node, *users}


def diff_of(before: GraphModule, after: GraphModule) -> GraphDiff:
    return diff(take_snapshot(before), take_snapshot(after))


@pytest.mark.parametrize("make", [distinct, alike])
def test_a_graph_that_is_numbered_otherwise_is_the_same(make) -> None:
    for seed in range(120):
        rng = random.Random(seed)
        gm = make(rng, rng.randint(1, 30))
        copy, _ = renumbered(gm, rng)
        assert not diff_of(gm, copy), seed


@pytest.mark.parametrize("rewrites", [1, 2, 3])
def test_of_a_rewritten_copy_only_touched_nodes_appear(rewrites: int) -> None:
    for seed in range(180):
        rng = random.Random(seed)
        gm = distinct(rng, rng.randint(20, 40))
        copy, copies = renumbered(gm, rng)
        was = {node: (c.target, c.args, dict(c.kwargs)) for node, c in copies.items()}
        touched = {node for i in range(rewrites) for node in rewrite(copy.graph, rng, 1000 + i)}
        found = diff_of(gm, copy)
        ours = {node for node, c in copies.items() if c in touched}
        shown = {change.old for change in found.nodes} | {change.new for change in found.nodes}
        assert shown - {None} <= ours | touched, seed
        # What is not as it was is in the diff, as itself or as what took its place.
        left = set(copy.graph.nodes)
        is_same = len(left) == len(copies) and all(
            c in left and was[node] == (c.target, c.args, dict(c.kwargs)) for node, c in copies.items()
        )
        assert bool(found) is not is_same, seed
        assert len(found.nodes) <= len(touched), seed


def test_little_more_than_was_touched_appears_where_most_nodes_are_alike() -> None:
    shown = touched = 0
    for seed in range(20):
        rng = random.Random(seed)
        gm = alike(rng, 100)
        copy, _ = renumbered(gm, rng)
        node = rng.choice([n for n in copy.graph.nodes if n.op == "call_function" and n.users])
        with copy.graph.inserting_after(node):
            new = copy.graph.call_function(aten.sigmoid.default, (node,))
        users = [user for user in node.users if user is not new]
        for user in users:
            user.replace_input_with(node, new)
        touched += 1 + len(users)
        shown += len(diff_of(gm, copy).nodes)
    assert touched <= shown <= 1.2 * touched


def test_a_model_with_other_weights_differs_in_these() -> None:
    rng = random.Random(0)
    gm = distinct(rng, 10)
    copy, _ = renumbered(gm, rng)
    copy.w = nn.Parameter(torch.full((1,), 2.0))
    assert diff_of(gm, copy).lines == ("@ attribute w replaced",)


def test_observers_are_told_by_what_they_observe() -> None:
    def observed(names: list[str]) -> GraphModule:
        graph = Graph()
        x = graph.placeholder("x")
        read = [graph.call_function(op, (x,)) for op in UNARY]
        graph.output([graph.call_module(name, (node,)) for name, node in zip(names, read, strict=False)])
        root = nn.Module()
        for number, name in enumerate(names):
            observer = nn.Module()
            observer.register_buffer("seen", torch.tensor(float(number)))
            root.add_module(name, observer)
        return GraphModule(root, graph)

    before = observed(["observer_0", "observer_1"])
    assert not diff_of(before, observed(["observer_1", "observer_0"]))
    after = observed(["observer_4", "observer_7"])
    after.observer_7.seen += 1
    assert diff_of(before, after).lines == ("@ attribute observer_7 replaced",)


def test_groups_count_by_their_members_not_by_their_numbers() -> None:
    def grouped(*groups: str) -> GraphModule:
        gm = distinct(random.Random(1), 3)
        calls = gm.graph.find_nodes(op="call_function", target=BINARY[0]) + gm.graph.find_nodes(
            op="call_function", target=BINARY[1]
        )
        for node, group in zip(calls, groups, strict=True):
            node.meta[GROUPS_KEY] = group
        return gm

    before = grouped("out g0", "out g0", "out g1")
    assert not diff_of(before, grouped("out g3", "out g3", "out g2"))
    found = diff_of(before, grouped("out g0", "out g1", "out g1"))
    assert [change.aspects for change in found.nodes] == [("annotated",), ("annotated",)]


def test_ids_count_until_two_graphs_gave_them_to_different_nodes() -> None:
    def numbered(ids: dict[str, int], retargeted: bool) -> GraphModule:
        graph = Graph()
        x = graph.placeholder("x")
        a = graph.call_function(aten.relu.default, (x,))
        b = graph.call_function(aten.sigmoid.default if retargeted else aten.neg.default, (a,))
        c = graph.call_function(aten.tanh.default, (x,))
        graph.output((c, c) if retargeted else (b, c))
        for node, name in ((x, "x"), (a, "a"), (b, "b"), (c, "c")):
            node.meta[ID_KEY] = ids[name]
            node.meta[ORIGIN_KEY] = ("a pass", None)
        return GraphModule(nn.Module(), graph)

    before = numbered({"x": 0, "a": 1, "b": 2, "c": 3}, False)
    found = diff_of(before, numbered({"x": 0, "a": 1, "b": 2, "c": 3}, True))
    assert found.counts == {"retargeted": 1, "rewired": 1}
    # Another id than that of any node before: b is no more, and the other is new.
    found = diff_of(before, numbered({"x": 0, "a": 1, "b": 4, "c": 3}, True))
    assert found.counts == {"added": 1, "removed": 1, "rewired": 1}


def test_where_an_argument_stands_counts() -> None:
    gm = distinct(random.Random(0), 1)
    (node,) = [n for n in gm.graph.nodes if n.op == "call_function"]
    node.args, node.kwargs = (node.args[0], None), {}
    before = take_snapshot(gm)
    node.args = (None, node.args[0])
    assert [change.aspects for change in diff(before, take_snapshot(gm)).nodes] == [("edited",)]
