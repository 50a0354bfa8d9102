"""Matching compared with an oracle that tries all orders of operands and checks the conditions afterwards."""

from __future__ import annotations

import itertools

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from lowbit.matchers.match import Match, Miss
from lowbit.matchers.subgraph import SubgraphMatcherWithNameNodeMap
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
INPUTS = 3


# A program is a list of calls; a call is an operator and the positions of the values it reads, inputs first.


CALLS = {
    "relu": lambda x, y, z: (aten.relu.default, (x,)),
    "add": lambda x, y, z: (aten.add.Tensor, (x, y)),
    "add scaled": lambda x, y, z: (aten.add.Tensor, (x, y), {"alpha": 2}),
    "mul": lambda x, y, z: (aten.mul.Tensor, (x, y)),
    "sub": lambda x, y, z: (aten.sub.Tensor, (x, y)),
    "linear": lambda x, y, z: (aten.linear.default, (x, y)),
    "linear with bias": lambda x, y, z: (aten.linear.default, (x, y, z)),
    "cat": lambda x, y, z: (aten.cat.default, ([x, y],)),
    "cat of three": lambda x, y, z: (aten.cat.default, ([x, y, z],)),
}
WITHOUT = {"linear with bias": "linear", "cat of three": "cat", "add scaled": "add"}
VARIATIONS = ["none", "none", "swap", "same", "detour", "without"]

positions = st.integers(0, 20)
calls = st.tuples(st.sampled_from(["relu", "add", "mul", *CALLS]), positions, positions, positions)
programs = st.lists(calls, min_size=1, max_size=5)
insertions = st.tuples(
    st.just("pattern"),
    st.lists(positions, min_size=INPUTS, max_size=INPUTS),
    st.lists(st.sampled_from(VARIATIONS), min_size=5, max_size=5),
)


def emit(graph, values, call, variation="none"):
    """Append ``call`` to ``graph``, reading from ``values``, or something near it."""
    name, *reads = call
    x, y, z = (values[position % len(values)] for position in reads)
    if variation == "swap":
        x, y = y, x
    if variation == "same":
        y = x
    if variation == "without":
        name = WITHOUT.get(name, name)
    node = graph.call_function(*CALLS[name](x, y, z))
    if variation == "detour":
        # What is read as an input from now on depends on what was just computed.
        values[INPUTS - 1] = graph.call_function(aten.relu.default, (node,))
    return node


def make_pattern(program, extra_outputs):
    graph = Graph()
    values = [graph.placeholder(f"p{i}") for i in range(INPUTS)]
    for call in program:
        values.append(emit(graph, values, call))
    returned = [values[-1], *(values[i] for i in extra_outputs if INPUTS <= i < len(values) - 1)]
    graph.output(tuple(dict.fromkeys(returned)))
    return GraphModule(torch.nn.Module(), graph)


def make_graph(pattern, parts):
    """Calls, and whole copies of ``pattern`` with variations."""
    graph = Graph()
    values = [graph.placeholder(f"g{i}") for i in range(INPUTS)]
    for part in parts:
        if part[0] != "pattern":
            values.append(emit(graph, values, part))
            continue
        _, inputs, variations = part
        inner = [values[-1 - position % len(values)] for position in inputs]
        for call, variation in zip(pattern, variations, strict=False):
            inner.append(emit(graph, inner, call, variation))
        values.append(inner[-1])
    graph.output(tuple(node for node in values if not node.users))
    return graph


# The oracle.


def arguments(node):
    """The tensors that ``node`` reads, lists spread out, each with whether it may be None."""
    args = list(node.args)
    if node.target is aten.linear.default:
        return [(args[0], False), (args[1], False), (args[2] if len(args) > 2 else None, True)]
    if node.target is aten.cat.default:
        return [(arg, False) for arg in args[0]]
    return [(arg, False) for arg in args[: len(args) if node.target is aten.relu.default else 2]]


def commutes(node):
    return node.target in (aten.add.Tensor, aten.mul.Tensor) and node.kwargs.get("alpha", 1) == 1


def in_preorder(node, found=None):
    found = {} if found is None else found
    if isinstance(node, Node) and node not in found:
        found[node] = None
        if node.op == "call_function":
            for argument, _ in arguments(node):
                in_preorder(argument, found)
    return found


def unify(pattern, node, may_be_none, swapped, bound):
    if pattern is None or (node is None and not (may_be_none and pattern.op == "placeholder")):
        return pattern is node
    if bound.setdefault(pattern, node) is not node:
        return False
    if pattern.op == "placeholder":
        return True
    if node.target is not pattern.target or (pattern in swapped and not commutes(node)):
        return False
    wanted, found = arguments(pattern), arguments(node)
    if pattern in swapped:
        found = found[::-1]
    return len(wanted) == len(found) and all(
        unify(w, f, may_be_none, swapped, bound)
        for (w, may_be_none), (f, _) in zip(wanted, found, strict=True)
    )


def depends_on(node, body):
    return node in body or any(depends_on(source, body) for source in node.all_input_nodes)


def is_allowed(bound, outputs, claimed):
    operators = {p: n for p, n in bound.items() if p.op == "call_function"}
    inputs = [n for p, n in bound.items() if p.op == "placeholder" and n is not None]
    body = set(operators.values())
    return (
        len(body) == len(operators)
        and body.isdisjoint(claimed)
        and all(set(n.users) <= body for p, n in operators.items() if p not in outputs)
        and not any(depends_on(n, body) for n in inputs)
    )


def oracle(pattern, anchor, claimed=frozenset()):
    outputs = pattern.output_node().all_input_nodes
    nodes = in_preorder(outputs[0])
    choices = [node for node in nodes if node.op == "call_function" and commutes(node)]
    for swaps in itertools.product([False, True], repeat=len(choices)):
        bound = {}
        swapped = {node for node, swap in zip(choices, swaps, strict=True) if swap}
        if unify(outputs[0], anchor, False, swapped, bound) and is_allowed(bound, outputs, claimed):
            return bound
    return None


@settings(max_examples=500, deadline=None)
@given(
    program=programs,
    extra_outputs=st.lists(st.integers(INPUTS, INPUTS + 3), max_size=2),
    parts=st.lists(st.one_of(calls, insertions), min_size=1, max_size=8),
)
def test_matches_are_those_of_the_oracle(program, extra_outputs, parts):
    gm = make_pattern(program, extra_outputs)
    anchor = gm.graph.output_node().all_input_nodes[0]
    # What the last call does not need, the pattern does not have.
    gm.graph.output_node().args = (
        tuple(n for n in gm.graph.output_node().all_input_nodes if n in in_preorder(anchor)),
    )
    matcher = SubgraphMatcherWithNameNodeMap(gm)
    pattern = matcher.pattern
    graph = make_graph(program, parts)
    graph.lint()

    expected = []
    claimed: set[Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            assert isinstance(matcher.match_at(node), Miss)
            continue
        alone = oracle(pattern, node)
        found = matcher.match_at(node)
        if alone is None:
            assert isinstance(found, Miss)
            assert found.node in graph.nodes
            event(f"miss: {found.reason}")
        else:
            assert isinstance(found, Match)
            assert found.nodes_map == alone
        bound = oracle(pattern, node, claimed)
        if bound is not None:
            expected.append(bound)
            claimed.update(n for p, n in bound.items() if p.op == "call_function")
    assert [match.nodes_map for match in matcher.match(graph)] == expected
    event(f"matches: {len(expected)}")
