"""A pass of one's own, and the laws that find what is wrong with it.

``MergeLinears`` replaces two linears in a row by one: W₂(W₁x + b₁) + b₂ = (W₂W₁)x + (W₂b₁ + b₂). Its first
version, ``Hasty``, is right on every model that its author tried: their linears had a bias. Where the second
has none, it forgets the first one's.

Run it: ``python examples/check_a_pass.py``. In a test it is one line: ``laws.check(MergeLinears())``.
"""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from lowbit import PassContext, Stage
from lowbit.ir.attributes import delete_unused, get_tensor, set_tensor
from lowbit.ir.sweep import erase_unread
from lowbit.tools.testing import laws
from torch import Tensor
from torch.fx import GraphModule, Node

LINEAR = torch.ops.aten.linear.default


@attrs.frozen
class MergeLinears:
    """Replaces linear → linear by one linear."""

    name: ClassVar[str] = "merge-linears"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        changed = False
        for node in gm.graph.find_nodes(op="call_function", target=LINEAR):
            first = node.args[0]
            if first.target is LINEAR:
                w1, b1, w2, b2 = (self.read(gm, n) for n in (*first.args[1:], *node.args[1:]))
                bias = self.merged_bias(w2, b1, b2)
                with gm.graph.inserting_before(node):
                    weight = self.store(gm, f"{node.name}_merged_weight", (w2 @ w1).float())
                    bias = None if bias is None else self.store(gm, f"{node.name}_merged_bias", bias.float())
                node.args = (first.args[0], weight, bias)
                changed = True
        if changed:
            erase_unread(gm.graph)
            delete_unused(gm)
        return changed

    def merged_bias(self, w2: Tensor, b1: Tensor | None, b2: Tensor | None) -> Tensor | None:
        if b1 is None:
            return b2
        return w2 @ b1 if b2 is None else w2 @ b1 + b2

    def read(self, gm: GraphModule, node: Node | None) -> Tensor | None:
        return None if node is None else get_tensor(gm, str(node.target)).detach().double()

    def store(self, gm: GraphModule, name: str, value: Tensor) -> Node:
        set_tensor(gm, name, value)
        return gm.graph.get_attr(name)


@attrs.frozen
class Hasty(MergeLinears):
    """The first version."""

    name: ClassVar[str] = "hasty-merge-linears"

    def merged_bias(self, w2: Tensor, b1: Tensor | None, b2: Tensor | None) -> Tensor | None:
        return b2 if b1 is None or b2 is None else w2 @ b1 + b2


if __name__ == "__main__":
    laws.check(MergeLinears())
    print("merge-linears keeps all laws; its first version:\n")
    try:
        laws.check(Hasty())
    except laws.LawBroken as broken:
        print(broken)
