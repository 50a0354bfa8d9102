"""``duplicate-dequantize``: one dequantize per user."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch.fx import GraphModule, Node

from ..ir.quantized_decomposed import is_dequantize
from ..ir.stages import Stage
from .base import PassContext
from .registry import register_pass

__all__ = ["DuplicateDequantize"]


@register_pass
@attrs.frozen
class DuplicateDequantize:
    """Gives every user of a dequantized tensor a dequantize of its own.

    A pattern of dequantize → operator → quantize then owns its dequantize, and lowering one user does not
    depend on the others.
    """

    name: ClassVar[str] = "duplicate-dequantize"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.QDQ})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Duplicate in place."""
        changed = False
        for node in list(gm.graph.nodes):
            if is_dequantize(node) and len(node.users) > 1:
                for user in list(node.users)[1:]:
                    _give_own_copy(gm, node, user)
                changed = True
        return changed


def _give_own_copy(gm: GraphModule, node: Node, user: Node) -> None:
    # Beside the original rather than before the user: the copy then stands before the user by construction.
    with gm.graph.inserting_after(node):
        own = gm.graph.node_copy(node)
    user.replace_input_with(node, own)
