"""``resolve-sharing``: find out which points have one scale and zero point."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch.fx import GraphModule, Node

from ..ir.points import annotated_points
from ..ir.sharing import SharingResult, resolve_sharing
from ..ir.snapshot import GROUPS_KEY
from ..ir.stages import Stage
from .base import PassContext, ResolvedSharing
from .registry import register_pass

__all__ = ["ResolveSharing", "sharing_of"]


def sharing_of(gm: GraphModule, context: PassContext) -> SharingResult:
    """The sharing of ``gm`` as ``resolve-sharing`` found it, or found anew where annotations changed since.

    Raises:
        SharingError: the annotations contradict each other.
        AnnotationError: an annotation names an edge that does not exist.
    """
    resolved = context.sharing
    # Nodes compare by identity, so the result of another graph is not taken for this one's.
    if resolved is not None and resolved.points == annotated_points(gm.graph):
        return resolved.result
    return resolve_sharing(gm.graph)


@register_pass
@attrs.frozen
class ResolveSharing:
    """Resolves explicit and implicit sharing into groups, and reports every conflict at once.

    Each annotated node gets ``meta["lowbit.groups"]``, the groups of its points as text: the diff of this
    pass is the sharing.
    """

    name: ClassVar[str] = "resolve-sharing"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.ANNOTATED})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Resolve, keep the result in ``context`` for ``insert-observers``, and label the nodes."""
        result = resolve_sharing(gm.graph)
        context.sharing = ResolvedSharing(annotated_points(gm.graph), result)
        labels: dict[Node, list[str]] = {}
        for group in result.groups:
            for point in group.points:
                if isinstance(point, Node):
                    labels.setdefault(point, []).append(f"out g{group.index}")
                else:
                    labels.setdefault(point[1], []).append(f"%{point[0].name} g{group.index}")
        for node, words in labels.items():
            node.meta[GROUPS_KEY] = ", ".join(words)
        return bool(labels)
