"""Bodies: what ``cond``, ``while_loop``, ``scan`` and the like run, which are graphs of their own."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from torch.fx import GraphModule, Node

from .attributes import get_attribute
from .ledger import Ledger
from .operators import is_float_operator
from .schema import HigherOrderOperator

__all__ = ["BodyOperator", "body_operators", "explain_bodies"]


@attrs.frozen(eq=False)
class BodyOperator:
    """An operator in a body.

    Args:
        node: the operator, a node of the body's graph.
        caller: the node that runs the body.
        body: the body's name, behind those of the bodies that it is in: ``true_graph_0.body_graph_0``.
    """

    node: Node
    caller: Node
    body: str


def body_operators(gm: GraphModule) -> Iterator[BodyOperator]:
    """The operators in the bodies of ``gm``, and in the bodies in those, in the order of their graphs."""
    yield from _operators(gm, "")


def _operators(gm: GraphModule, prefix: str) -> Iterator[BodyOperator]:
    for caller in gm.graph.nodes:
        if not isinstance(caller.target, HigherOrderOperator):
            continue
        for name in (str(n.target) for n in caller.all_input_nodes if n.op == "get_attr"):
            body = get_attribute(gm, name)
            if isinstance(body, GraphModule):
                calls = (node for node in body.graph.nodes if node.op == "call_function")
                yield from (BodyOperator(node, caller, prefix + name) for node in calls)
                yield from _operators(body, f"{prefix}{name}.")


def explain_bodies(gm: GraphModule, ledger: Ledger) -> None:
    """Enter that the float operators in the bodies of ``gm`` stay float (``control-flow-body``).

    A body has no constants: weights are arguments that its caller hands in, so what is a weight, and whether
    it is the same at every call, is not for the body to say.
    """
    for operator in body_operators(gm):
        if is_float_operator(operator.node):
            detail = (
                f"in a body of {operator.caller.target} (%{operator.caller.name}), which no pass goes into"
            )
            inside = (operator.caller, operator.body)
            ledger.missed("control-flow-body", operator.node, detail, inside=inside)
