"""Whose memory a kernel that accumulates in place may write into."""

from __future__ import annotations

import torch
from torch.fx import Node

from ...ir.aliasing import aliased_inputs
from ...ir.quantized_decomposed import is_dequantize, is_quantize
from ...matchers.operator_pattern import KernelCall

__all__ = ["may_overwrite", "memory_of"]


def may_overwrite(call: KernelCall, node: Node) -> bool:
    """Whether nothing but the addition reads the memory of ``node`` after the kernel, the caller of the model
    included."""
    if node.op != "call_function" or memory_of(node) is not node:
        return False
    addition = call.node_calling(torch.ops.aten.add.Tensor)
    # The last ones first: kernels that were put behind this place already are what mostly says no.
    for user in reversed(node.users):
        readers = user.users if is_dequantize(user) else {user: None}
        if list(readers) == [addition]:
            continue
        if not user < call.output or any(map(aliased_inputs, readers)):
            return False
    return True


def memory_of(node: Node) -> Node:
    """The node that made the memory which ``node`` may be in.

    Between quantize and dequantize a view counts as one already: it will be, once it is lowered.
    """
    while True:
        source = node.args[0] if is_quantize(node) else node
        views = aliased_inputs(source) if isinstance(source, Node) else ()
        if not views:
            return node
        node = views[0]
        if is_dequantize(node):
            (node,) = node.all_input_nodes
