"""The sharing groups of two graphs, compared without their numbers, which are counted anew in every graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

import attrs
from torch.fx import Node

from .snapshot import NodeRecord

__all__ = ["GroupLabels"]

_LABEL: Final = re.compile(r"(?:out|%(\S+)) g(\d+)")
"""As ``resolve-sharing`` writes them: ``out g3, %relu g1``."""

Point: TypeAlias = tuple[Node, Node | None]
"""An owner of points, and the tensor of the edge; None for its output."""


@attrs.define(eq=False)
class GroupLabels:
    """Reads ``meta["lowbit.groups"]`` of one graph.

    Args:
        nodes: each node that is in both graphs, as who both know it, and its record; in an order that both
            have.
        by_name: the nodes of the graph by name, as who both know them.
    """

    nodes: Iterable[tuple[Node, NodeRecord]]
    by_name: Mapping[str, Node]
    _first: dict[str, Point] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        for node, record in self.nodes:
            for tensor, number in _LABEL.findall(record.groups or ""):
                self._first.setdefault(number, (node, self.by_name.get(tensor)))

    def of(self, record: NodeRecord) -> list[tuple[Node | None, Point]]:
        """The points of a node, each with the first point of its group."""
        return [
            (self.by_name.get(tensor), self._first[number])
            for tensor, number in _LABEL.findall(record.groups or "")
        ]
