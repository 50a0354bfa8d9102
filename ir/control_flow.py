"""Bodies: what ``cond``, ``while_loop``, ``scan`` and the like run, which are graphs of their own."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from torch.fx import GraphModule, Node

from .attributes import get_attribute
from .schema import HigherOrderOperator

__all__ = ["Body", "bodies"]


@attrs.frozen(eq=False)
class Body:
    """A body.

    Args:
        module: its graph.
        owner: the graph module that runs it: the model, or the body that it is in.
        caller: the node that runs it.
        name: the body's name, behind those of the bodies that it is in: ``true_graph_0.body_graph_0``.
        callers: ``caller`` behind the nodes that run the bodies it is in, the outermost first.
    """

    module: GraphModule
    owner: GraphModule
    caller: Node
    name: str
    callers: tuple[Node, ...]


def bodies(gm: GraphModule) -> Iterator[Body]:
    """The bodies of ``gm``, each before the bodies in it, in the order of their callers."""
    yield from _bodies(gm, "", ())


def _bodies(gm: GraphModule, prefix: str, outside: tuple[Node, ...]) -> Iterator[Body]:
    for caller in gm.graph.nodes:
        if not isinstance(caller.target, HigherOrderOperator):
            continue
        for name in (str(n.target) for n in caller.all_input_nodes if n.op == "get_attr"):
            module = get_attribute(gm, name)
            if isinstance(module, GraphModule):
                callers = (*outside, caller)
                yield Body(module, gm, caller, prefix + name, callers)
                yield from _bodies(module, f"{prefix}{name}.", callers)
