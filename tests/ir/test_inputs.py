from __future__ import annotations

import torch
from lowbit.ir.inputs import replace_inputs
from torch.fx import Graph

aten = torch.ops.aten


def test_inputs_are_replaced_wherever_they_stand_and_all_at_once() -> None:
    graph = Graph()
    a, b, c = (graph.placeholder(name) for name in "abc")
    node = graph.call_function(aten.cat.default, ([a, b, a], 1), {"out": {"first": (c, a)}})
    # The two change places, which one after the other would not give.
    replace_inputs(node, {a: b, b: a})
    assert node.args == ([b, a, b], 1)
    assert node.kwargs == {"out": {"first": (c, b)}}
    assert node.all_input_nodes == [b, a, c]
    assert [list(n.users) for n in (a, b, c)] == [[node]] * 3


def test_users_follow() -> None:
    graph = Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    node = graph.call_function(aten.add.Tensor, (a, a), {"alpha": 2})
    replace_inputs(node, {a: b})
    assert (list(a.users), list(b.users)) == ([], [node])
    replace_inputs(node, {})
    assert node.args == (b, b)
    assert node.kwargs == {"alpha": 2}
