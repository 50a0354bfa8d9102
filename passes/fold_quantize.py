"""``fold-quantize``: quantize constants now, not at every call."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch.fx import GraphModule, Node

from ..ir import quantized_decomposed as qd
from ..ir.attributes import FreeNames, constants, delete_unused, evaluate, set_tensor
from ..ir.specs import CAST_DTYPES
from ..ir.stages import Stage
from ..ir.sweep import erase_unread
from .base import PassContext
from .contracts import EXACT, Contract
from .registry import register_pass

__all__ = ["FoldQuantize"]


@register_pass
@attrs.frozen
class FoldQuantize:
    """Replaces quantize operators of constants by the quantized tensor, and lets the float one go.

    ``conv1.weight`` becomes the buffer ``conv1.weight_int8``; casts to float16 are folded likewise.
    Dequantize operators stay: they are what lowering recognizes. The name is another, so that loading a float
    checkpoint cannot truncate floats into it.
    """

    name: ClassVar[str] = "fold-quantize"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.QDQ})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = EXACT
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Fold in place."""
        names = FreeNames(gm)
        constant = constants(gm.graph)
        foldable = [n for n in gm.graph.nodes if _stores_less(n) and constant.issuperset(n.all_input_nodes)]
        folded: list[Node] = []
        for node in foldable:
            if context.allows("fold", node):
                _fold(gm, node, names)
                folded.append(node)
        if folded:
            erase_unread(gm.graph)
            delete_unused(gm)
        return bool(folded)


def _stores_less(node: Node) -> bool:
    is_cast = node.op == "call_function" and node.target is qd.CONVERT_ELEMENT_TYPE
    return qd.is_quantize(node) or (is_cast and node.args[1] in CAST_DTYPES)


def _fold(gm: GraphModule, node: Node, names: FreeNames) -> None:
    quantized = evaluate(gm, node)
    source = node.args[0]
    assert isinstance(source, Node)
    target = names.fresh(f"{source.target}_{str(quantized.dtype).removeprefix('torch.')}")
    set_tensor(gm, target, quantized)
    with gm.graph.inserting_before(node):
        constant = gm.graph.get_attr(target)
    constant.meta = dict(node.meta)
    node.replace_all_uses_with(constant)
    gm.graph.erase_node(node)
