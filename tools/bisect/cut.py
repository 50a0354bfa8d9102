"""Leaving nodes of a graph out: it computes something else then, but is a graph still."""

from __future__ import annotations

from typing import cast

import attrs
import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from ...ir.annotation import get_annotation, set_annotation
from ...ir.attributes import delete_unused
from ...ir.clone import clone_graph_module
from ...ir.meta import LEDGER_KEY
from ...ir.points import map_points
from ...ir.specs import EdgeOrNode

__all__ = ["cut", "names_of"]

_OUTPUT = "output:"


def names_of(gm: GraphModule) -> tuple[str, ...]:
    """What can be left out of ``gm``: the calls, by name, and the outputs, as ``output:NUMBER``."""
    calls = tuple(node.name for node in gm.graph.nodes if _is_call(node))
    return (*(f"{_OUTPUT}{i}" for i in range(len(_outputs(gm.graph)))), *calls)


def cut(gm: GraphModule, kept: frozenset[str]) -> GraphModule:
    """A copy of ``gm`` with those only of :func:`names_of` that are in ``kept``.

    Whoever read a node that is left out reads an input of it of the same shape and dtype, or else a new input
    of the graph. Inputs and attributes that nothing reads go too.
    """
    new = clone_graph_module(gm)
    graph = new.graph
    graph.output_node().args = (
        tuple(node for i, node in enumerate(_outputs(graph)) if f"{_OUTPUT}{i}" in kept),
    )
    replaced: dict[Node, Node] = {}
    first = next(iter(graph.nodes))
    for node in list(graph.nodes):
        if _is_call(node) and node.name not in kept:
            if node.users:
                replaced[node] = _stand_in(node, first)
                node.replace_all_uses_with(replaced[node])
            graph.erase_node(node)
    for op in ("get_attr", "placeholder"):
        for node in graph.find_nodes(op=op):
            if not node.users:
                graph.erase_node(node)
    _follow(graph, replaced)
    # The inputs and outputs are no longer those that the exported program took apart and put together.
    graph.set_codegen(CodeGen())
    delete_unused(new)
    new.meta.pop(LEDGER_KEY, None)  # it is about nodes that are no more
    return new


def _is_call(node: Node) -> bool:
    return node.op in {"call_function", "call_module", "call_method"}


def _outputs(graph: Graph) -> tuple[Node, ...]:
    return tuple(graph.output_node().all_input_nodes)


def _stand_in(node: Node, first: Node) -> Node:
    value = node.meta.get("val")
    for source in node.all_input_nodes:
        if isinstance(value, torch.Tensor) and _is_alike(source.meta.get("val"), value):
            return source
    with node.graph.inserting_before(first):
        stand_in = node.graph.placeholder(f"{node.name}_in")
    stand_in.meta = {
        key: node.meta[key] for key in ("val", "nn_module_stack", "stack_trace") if key in node.meta
    }
    return stand_in


def _is_alike(value: object, wanted: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype is wanted.dtype and value.shape == wanted.shape


def _follow(graph: Graph, replaced: dict[Node, Node]) -> None:
    """Let annotations refer to what is there."""

    def now(node: Node) -> Node:
        while node in replaced:
            node = replaced[node]
        return node

    def point_now(point: EdgeOrNode) -> EdgeOrNode:
        return now(point) if isinstance(point, Node) else (now(point[0]), now(point[1]))

    for node in graph.nodes:
        annotation = get_annotation(node)
        if annotation is None:
            continue
        specs = {
            now(source): map_points(spec, point_now)
            for source, spec in annotation.input_qspec_map.items()
            if now(source) in cast("list[Node]", node.all_input_nodes)
        }
        output = map_points(annotation.output_qspec, point_now)
        set_annotation(node, attrs.evolve(annotation, input_qspec_map=specs, output_qspec=output))
