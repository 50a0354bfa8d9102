"""Removing what nothing reads."""

from __future__ import annotations

from torch.fx import Graph

__all__ = ["erase_unread"]


def erase_unread(graph: Graph) -> bool:
    """Erase operators and attribute reads without users, in one backward sweep; say whether there were any.

    Inputs stay, as do nodes with effects: calls of modules (guards, observers) and operators that write.
    """
    erased = False
    for node in reversed(graph.nodes):
        if not node.users and node.op in {"get_attr", "call_function"} and not node.is_impure():
            graph.erase_node(node)
            erased = True
    return erased
