"""``duplicate-dequantize``: one dequantize per user."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch.fx import GraphModule, Node

from ..ir.inputs import replace_inputs
from ..ir.quantized_decomposed import is_dequantize
from ..ir.stages import Stage
from .base import PassContext
from .contracts import EXACT, Contract
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
    contract: ClassVar[Contract | None] = EXACT
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Duplicate in place."""
        own: dict[Node, dict[Node, Node]] = {}
        for node in list(gm.graph.nodes):
            if is_dequantize(node) and len(node.users) > 1 and context.allows("duplicate", node):
                for user in list(node.users)[1:]:
                    # Beside the original, and so before the user.
                    with gm.graph.inserting_after(node):
                        own.setdefault(user, {})[node] = gm.graph.node_copy(node)
        for user, copies in own.items():
            replace_inputs(user, copies)
        return bool(own)
