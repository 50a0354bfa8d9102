"""Removing what nothing reads."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Graph, Node

from .aliasing import is_write

__all__ = ["erase_unread"]


def erase_unread(graph: Graph, erasing: Callable[[Node], None] = lambda node: None) -> bool:
    """Erase what has no users, in one backward sweep; say whether there was anything.

    Inputs stay, as do nodes with effects: guards, checks, observers, and operators that write, which includes
    a BatchNorm in training (FX does not count that). ``erasing`` is told of each node before it goes.
    """
    erased = False
    for node in reversed(graph.nodes):
        if node.users or node.op not in {"get_attr", "call_function"}:
            continue
        if not node.is_impure() and not is_write(node):
            erasing(node)
            graph.erase_node(node)
            erased = True
    return erased
