"""A prepared or converted graph as it was before: without observers, quantize and dequantize."""

from __future__ import annotations

from typing import cast

from torch.fx import GraphModule, Node

from . import quantized_decomposed as qd
from .attributes import AttributeFinder
from .clone import clone_graph_module
from .verifiers import is_observer

__all__ = ["float_view"]


def float_view(gm: GraphModule) -> GraphModule:
    """A copy of ``gm`` whose operators read each other as in the float graph; names of nodes are the same.

    Of a prepared graph that is the annotated graph, annotations included. Of a converted one the weights stay
    what is stored, integers where they are folded. Kernels of a lowered graph stay.
    """
    view = clone_graph_module(gm)
    find = AttributeFinder(view)
    for node in list(view.graph.nodes):
        source = _passed_on(node, find)
        if source is not None:
            node.replace_all_uses_with(source)
            view.graph.erase_node(node)
    # What only fed a dequantize: quantize, and what chose its parameters.
    for node in reversed(view.graph.nodes):
        if not node.users and (qd.is_quantize(node) or node.target in qd.CHOOSE_QPARAMS_OPS):
            view.graph.erase_node(node)
    return view


def _passed_on(node: Node, find: AttributeFinder) -> Node | None:
    """The tensor that ``node`` stands for in low precision, None for an operator of the model."""
    if node.op == "call_module":
        return cast(Node, node.args[0]) if is_observer(find.find(str(node.target))) else None
    if qd.is_dequantize(node):
        stored = cast(Node, node.args[0])
        return cast(Node, stored.args[0]) if qd.is_quantize(stored) else stored
    return cast(Node, node.args[0]) if node.target is qd.CONVERT_ELEMENT_TYPE else None
