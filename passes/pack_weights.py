"""``pack-weights``: bring constant weights into the layout their kernels compute in."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import ClassVar

import attrs
import torch
from torch.fx import GraphModule, Node

from ..ir.attributes import FreeNames, constants, delete_unused, evaluate, set_tensor
from ..ir.meta import PACK_KEY
from ..ir.stages import Stage
from ..ir.sweep import erase_unread
from .base import PassContext
from .contracts import EXACT, Contract
from .registry import register_pass

__all__ = ["PACK_KEY", "PackWeights"]


@register_pass
@attrs.frozen
class PackWeights:
    """Runs the packing calls of constant weights now and keeps their results.

    The last pass: a packed weight is opaque to everything but its kernel. It compiles, but
    ``torch.export.save`` and ``state_dict`` files cannot hold it. Parameters that are left (biases) stop
    asking for gradients, which the kernels do not have.
    """

    name: ClassVar[str] = "pack-weights"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.LOWERED})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = EXACT
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Pack in place."""
        names = FreeNames(gm)
        constant = constants(gm.graph)
        calls = [
            node
            for node in gm.graph.nodes
            if node.meta.get(PACK_KEY) and constant.issuperset(node.all_input_nodes)
        ]
        packed: dict[Hashable, Node] = {}
        for node in calls:
            if not context.allows("pack", node):
                continue
            # A layer that is called several times is packed once.
            key = (node.target, node.args)
            if key not in packed:
                packed[key] = _pack(gm, node, names)
            node.replace_all_uses_with(packed[key])
            gm.graph.erase_node(node)
        if packed:
            erase_unread(gm.graph)
            delete_unused(gm)
        frozen = list(_trainable(gm))
        for target, parameter in frozen:
            constant = torch.nn.Parameter(parameter.detach(), requires_grad=False)
            set_tensor(gm, target, constant, like=constant)
        return bool(packed or frozen)


def _pack(gm: GraphModule, node: Node, names: FreeNames) -> Node:
    """Run the packing call ``node``, keep its result and return the node that reads it."""
    packed = evaluate(gm, node)
    weight = node.args[0]
    assert isinstance(weight, Node)
    target = names.fresh(f"{weight.target}_packed")
    set_tensor(gm, target, packed)
    with gm.graph.inserting_before(node):
        constant = gm.graph.get_attr(target)
    # No "val": an opaque tensor has no strides to pretend, and nothing reads it but its kernel.
    constant.meta = {k: v for k, v in node.meta.items() if k not in {PACK_KEY, "val"}}
    return constant


def _trainable(gm: GraphModule) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in gm.named_parameters(remove_duplicate=False) if p.requires_grad)
