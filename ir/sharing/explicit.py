"""The explicit rule: a point with a ``SharedQuantizationSpec`` takes the spec of its anchor.

Each shared point names one anchor, so the points form trees that lead to a concrete spec, to an anchor that
is no annotated point, or into a cycle. Every point is walked once, in a loop rather than by recursion.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import attrs
from torch.fx import Node

from ..points import PointFault, point_fault
from ..problems import Problem
from ..specs import EdgeOrNode, QuantizationSpecBase, SharedQuantizationSpec
from .dead_ends import anchor_problems

__all__ = ["ExplicitSharing", "follow_anchors"]


@attrs.frozen
class ExplicitSharing:
    """Where the anchors lead.

    Args:
        anchors: for each point, the index of its anchor; None where it has a concrete spec or a bad anchor.
        roots: for each point, the index of the point whose concrete spec it has; None where there is none.
        problems: one a cycle and one a bad anchor.
    """

    anchors: list[int | None]
    roots: list[int | None]
    problems: list[Problem]


def follow_anchors(
    annotated: Sequence[tuple[EdgeOrNode, QuantizationSpecBase]], nodes: Container[Node]
) -> ExplicitSharing:
    """Follow the anchor of every point to a concrete spec.

    Args:
        annotated: points and specs, in graph order.
        nodes: the nodes of the graph.
    """
    index = {point: i for i, (point, _) in enumerate(annotated)}
    anchors: list[int | None] = [None] * len(annotated)
    faults: dict[int, PointFault] = {}
    for i, (_, spec) in enumerate(annotated):
        if isinstance(spec, SharedQuantizationSpec):
            fault = point_fault(spec.edge_or_node, nodes, index)
            if fault is None:
                anchors[i] = index[spec.edge_or_node]
            else:
                faults[i] = fault
    roots, cycles = _roots(anchors, faults)
    return ExplicitSharing(anchors, roots, anchor_problems(annotated, anchors, roots, faults, cycles))


def _roots(anchors: Sequence[int | None], faults: Container[int]) -> tuple[list[int | None], list[list[int]]]:
    roots: list[int | None] = [None] * len(anchors)
    cycles: list[list[int]] = []
    walk_of = [-1] * len(anchors)  # the start of the walk that came by: meeting it again closes a cycle
    for start in range(len(anchors)):
        path: list[int] = []
        at = start
        while walk_of[at] == -1:
            walk_of[at] = start
            path.append(at)
            anchor = anchors[at]
            if anchor is None:
                roots[at] = None if at in faults else at
                break
            at = anchor
        else:
            if walk_of[at] == start:
                cycles.append(path[path.index(at) :])
        for i in path:
            roots[i] = roots[at]
    return roots, cycles
