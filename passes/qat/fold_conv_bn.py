"""``fold-conv-bn-qat``: store the folded weights and biases of blocks that were trained."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Final

import attrs
from torch.fx import GraphModule

from ...ir.attributes import FreeNames, delete_unused, get_tensor, set_tensor
from ...ir.conv_bn import Part, blocks_in_evaluation, constant_parts
from ...ir.conv_bn_writer import Block
from ...ir.meta import BLOCK_KEY, QAT_KEY
from ...ir.stages import Stage
from ...ir.sweep import erase_unread
from ...ir.train_eval import drop_idle, switch_to_evaluation
from ..base import PassContext
from ..contracts import REAL, Contract
from ..registry import register_pass

__all__ = ["FoldConvBnQat"]

_KEPT_META: Final = ("val", "nn_module_stack", "stack_trace", "from_node")


@register_pass
@attrs.frozen
class FoldConvBnQat:
    """Switch the graph to evaluation for good, and compute what ``fuse-conv-bn-qat`` left to be computed.

    The folded weight takes the name of the convolution's weight, the folded bias that of its bias, where
    nothing else reads those; else a free name. Their values are those that the graph in evaluation computes
    at every call, to the bit. Graphs that were not prepared for training are left as they are.
    """

    name: ClassVar[str] = "fold-conv-bn-qat"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.OBSERVED})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = REAL

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """See :class:`~lowbit.passes.base.Pass`."""
        if not gm.meta.pop(QAT_KEY, False):
            return False
        switch_to_evaluation(gm)
        names = FreeNames(gm)
        reads: Counter[str] = Counter()
        for node in gm.graph.find_nodes(op="get_attr"):
            reads[node.target] += len(node.users)
        convs = blocks_in_evaluation(gm.graph)
        # All values before any is stored: blocks may share their parameters.
        parts = [constant_parts(gm, conv) for conv in convs]
        for conv, (weight, bias) in zip(convs, parts, strict=True):
            if not context.allows("fold", conv):
                continue
            block: Block = conv.meta.pop(BLOCK_KEY)
            parent = block.weight.rpartition(".")[0]
            new_bias = f"{parent}.bias" if parent else "bias"
            for part, old, name in ((weight, block.weight, block.weight), (bias, block.bias, new_bias)):
                free = old if old is not None and reads[old] == 1 else names.fresh(old or name)
                _store(gm, part, free, like=block.weight)
        drop_idle(gm)
        erase_unread(gm.graph)
        delete_unused(gm)
        return True


def _store(gm: GraphModule, part: Part, name: str, *, like: str) -> None:
    """Keep the value of ``part`` at ``name``, and let the readers of its node read it there."""
    set_tensor(gm, name, part.value, like=get_tensor(gm, like))
    with gm.graph.inserting_before(part.node):
        node = gm.graph.create_node("get_attr", name, name=name.replace(".", "_"))
    node.meta = {key: part.node.meta[key] for key in _KEPT_META if key in part.node.meta}
    part.node.replace_all_uses_with(node)
