"""Replacing several inputs of a node at once."""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import Node
from torch.fx.node import map_arg

__all__ = ["replace_inputs"]


def replace_inputs(node: Node, values: Mapping[Node, Node]) -> None:
    """Let ``node`` read ``values[i]`` wherever it reads ``i``, in lists and keyword arguments too.

    ``Node.replace_input_with`` goes through all arguments for one input: for n inputs of a concatenation, one
    after the other, that is n².
    """

    def value(source: Node) -> Node:
        return values.get(source, source)

    # FX types the results as arguments of any form; they have the form of what is mapped.
    node.args = map_arg(node.args, value)  # pyright: ignore[reportAttributeAccessIssue]
    node.kwargs = map_arg(node.kwargs, value)  # pyright: ignore[reportAttributeAccessIssue]
