"""One dequantize per user, and nothing else changed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.stages import Stage, set_stage
from lowbit.passes import DuplicateDequantize, PassContext, PassManager, Pipeline
from lowbit.passes.instruments import Timing
from torch import nn
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
ARGUMENTS = (0.5, 3, 0, 255, torch.uint8)


def make(build) -> GraphModule:
    """A Q/DQ graph; ``build`` continues it from the dequantized input."""
    graph = Graph()
    x = graph.placeholder("x")
    q = graph.call_function(qd.QUANTIZE_PER_TENSOR, (x, *ARGUMENTS))
    dq = graph.create_node("call_function", qd.DEQUANTIZE_PER_TENSOR, (q, *ARGUMENTS), name="dq")
    dq.meta["stack_trace"] = "here"
    graph.output(build(graph, dq))
    gm = GraphModule(nn.Module(), graph)
    set_stage(gm, Stage.QDQ)
    return gm


def duplicate(gm: GraphModule) -> tuple[GraphModule, bool]:
    timing = Timing()
    result = PassManager((timing,)).run(gm, Pipeline((DuplicateDequantize(),)))
    result.graph.lint()
    return result, timing.records[0].changed


def dequantizes(gm: GraphModule) -> list[Node]:
    return [n for n in gm.graph.nodes if qd.is_dequantize(n)]


X = torch.randn(4, generator=torch.Generator().manual_seed(0))


def test_every_user_has_its_own() -> None:
    def build(graph: Graph, dq: Node):
        return [
            graph.call_function(op, (dq,)) for op in (aten.relu.default, aten.tanh.default, aten.neg.default)
        ]

    gm = make(build)
    result, changed = duplicate(gm)
    assert changed
    assert len(dequantizes(result)) == 3
    assert [len(n.users) for n in dequantizes(result)] == [1, 1, 1]
    assert len({n.args for n in dequantizes(result)}) == 1
    assert all(n.meta["stack_trace"] == "here" for n in dequantizes(result))
    for found, expected in zip(result(X), gm(X), strict=True):
        assert torch.equal(found, expected)


def test_a_user_that_reads_twice_is_one_user() -> None:
    def build(graph: Graph, dq: Node):
        twice = graph.call_function(aten.add.Tensor, (dq, dq))
        return twice, graph.call_function(aten.cat.default, ([dq, twice, dq],))

    result, changed = duplicate(make(build))
    assert changed
    assert len(dequantizes(result)) == 2
    add = next(n for n in result.graph.nodes if n.target is aten.add.Tensor)
    cat = next(n for n in result.graph.nodes if n.target is aten.cat.default)
    assert add.args[0] is add.args[1]
    assert cat.args[0][0] is cat.args[0][2]
    assert cat.args[0][0] is not add.args[0]


def test_the_output_is_a_user_and_keyword_arguments_are_read() -> None:
    def build(graph: Graph, dq: Node):
        return dq, graph.call_function(aten.clamp.Tensor, (), {"self": dq, "min": dq})

    result, _ = duplicate(make(build))
    assert [len(n.users) for n in dequantizes(result)] == [1, 1]


@pytest.mark.parametrize("users", [0, 1])
def test_a_single_user_is_left_alone(users: int) -> None:
    gm = make(lambda graph, dq: graph.call_function(aten.relu.default, (dq,)) if users else 1)
    assert not duplicate(gm)[1]
    assert DuplicateDequantize().run(gm, PassContext()) is False


def test_all_kinds_of_dequantize_are_duplicated_and_their_parameters_are_not() -> None:
    graph = Graph()
    x, scale, zero_point = (graph.placeholder(name) for name in ("x", "scale", "zero_point"))
    arguments = (scale, zero_point, 0, -128, 127, torch.int8)
    q = graph.call_function(qd.QUANTIZE_PER_CHANNEL, (x, *arguments))
    dq = graph.call_function(qd.DEQUANTIZE_PER_CHANNEL, (q, *arguments), {"out_dtype": torch.bfloat16})
    dynamic = (scale, zero_point, -128, 127, torch.int8)
    q2 = graph.call_function(qd.QUANTIZE_PER_TENSOR_DYNAMIC, (x, *dynamic))
    dq2 = graph.call_function(qd.DEQUANTIZE_PER_TENSOR_DYNAMIC, (q2, *dynamic))
    graph.output(
        [graph.call_function(op, (n,)) for n in (dq, dq2) for op in (aten.relu.default, aten.neg.default)]
    )
    gm = GraphModule(nn.Module(), graph)
    set_stage(gm, Stage.QDQ)
    result, _ = duplicate(gm)
    assert len(dequantizes(result)) == 4
    assert [n.kwargs for n in dequantizes(result)] == [{"out_dtype": torch.bfloat16}] * 2 + [{}] * 2
    assert len(result.graph.find_nodes(op="placeholder")) == 3
    assert sum(qd.is_quantize(n) for n in result.graph.nodes) == 2


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=8))
def test_any_graph_keeps_its_values_and_has_one_dequantize_per_edge(reads: list[list[int]]) -> None:
    def build(graph: Graph, dq: Node):
        values = [dq]
        for indices in reads:
            sources = [values[i % len(values)] for i in indices]
            total = graph.call_function(aten.stack.default, (sources,))
            mean = graph.call_function(aten.mean.dim, (total, [0]))
            q = graph.call_function(qd.QUANTIZE_PER_TENSOR, (mean, *ARGUMENTS))
            values.append(graph.call_function(qd.DEQUANTIZE_PER_TENSOR, (q, *ARGUMENTS)))
        return values

    gm = make(build)
    edges = sum(len(n.users) for n in dequantizes(gm))
    result, _ = duplicate(gm)
    assert len(dequantizes(result)) == edges
    assert all(len(n.users) == 1 for n in dequantizes(result))
    for found, expected in zip(result(X), gm(X), strict=True):
        assert torch.equal(found, expected)
    assert not duplicate(result)[1]
