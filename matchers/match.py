"""What a matcher answers: a match, or the reason why there is none."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs
from torch.fx import Node

__all__ = ["Match", "Miss", "MissReason"]

MissReason: TypeAlias = Literal[
    "different-target",
    "different-literal",
    "different-length",
    "different-node",
    "not-a-node",
    "unexpected-node",
    "second-user",
    "input-inside",
    "overlap",
    "not-a-placeholder",
    "not-returned",
]
"""Why a candidate is no match.

- ``different-target``: the graph calls another operator than the pattern;
- ``different-literal``: a literal (stride, eps, index, …) is not the pattern's;
- ``different-length``: a list of tensors is longer or shorter than the pattern's;
- ``different-node``: one node of the pattern would stand for two of the graph, or the other way round;
- ``not-a-node``: the graph has a literal, or nothing, where the pattern has a tensor;
- ``unexpected-node``: the graph has a tensor where the pattern has a literal, or nothing;
- ``second-user``: a node inside the pattern is read from outside too;
- ``input-inside``: an input of the match would be computed by the match itself;
- ``overlap``: a node belongs to an earlier match;
- ``not-a-placeholder``, ``not-returned``: asked for by ``match_placeholder`` and ``match_output``.
"""


@attrs.frozen(eq=False)
class Match:
    """One occurrence of a pattern in a graph.

    Args:
        anchor: the node of the graph that the match was found from, an output of the pattern.
        nodes: the operators the pattern stands for, in graph order; its inputs do not belong to them.
        nodes_map: node of the pattern → node of the graph; None for an optional tensor that is absent.
        placeholder_nodes: what the inputs of the pattern are bound to, in their order, without those that the
            pattern does not read.
        returning_nodes: the operators whose results the pattern returns, in its order.
        name_node_map: name the pattern gives → node of the graph; None for an absent optional tensor.
    """

    anchor: Node
    nodes: tuple[Node, ...]
    nodes_map: dict[Node, Node | None]
    placeholder_nodes: list[Node | None]
    returning_nodes: list[Node]
    name_node_map: dict[str, Node | None]


@attrs.frozen(eq=False)
class Miss:
    """Why there is no match at a node: of everything tried there, what came nearest.

    Args:
        reason: a code for the ledger.
        node: the node of the graph where the pattern stopped fitting.
        detail: one sentence for people.
    """

    reason: MissReason
    node: Node
    detail: str
