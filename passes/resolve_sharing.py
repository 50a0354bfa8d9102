"""``resolve-sharing``: find out which points have one scale and zero point."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch.fx import GraphModule, Node

from ..ir.meta import GROUPS_KEY
from ..ir.points import owner_of, tensor_of
from ..ir.sharing import resolve_sharing
from ..ir.stages import Stage
from .base import PassContext
from .contracts import EXACT, Contract
from .registry import register_pass

__all__ = ["ResolveSharing"]


@register_pass
@attrs.frozen
class ResolveSharing:
    """Resolves explicit and implicit sharing into groups, and reports every conflict at once.

    Each annotated node gets ``meta["lowbit.groups"]``, the groups of its points as text: the diff of this
    pass is the sharing. The groups themselves are not kept: ``insert-observers`` resolves once more, so that
    passes in between may annotate, and nothing on the module refers to nodes, which would not survive a copy.

    Args:
        bodies: whether that is done in bodies of ``cond`` and the like too. Training stays out of them.
    """

    name: ClassVar[str] = "resolve-sharing"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.ANNOTATED})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = EXACT
    bodies: bool = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Resolve, and label the nodes."""
        labels: dict[Node, list[str]] = {}
        for group in resolve_sharing(gm.graph).groups:
            for point in group.points:
                what = "out" if isinstance(point, Node) else f"%{tensor_of(point).name}"
                labels.setdefault(owner_of(point), []).append(f"{what} g{group.index}")
        for node, words in labels.items():
            node.meta[GROUPS_KEY] = ", ".join(words)
        return bool(labels)
