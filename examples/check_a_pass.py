"""A pass of one's own, and the laws that find what is wrong with it.

``DropDoubleRelu`` replaces relu(relu(x)) by relu(x). Its first version, ``Hasty``, is right on every model
that its author tried. It looks for "relu" in the name of the operator, and relu6 has that too.

Run it: ``python examples/check_a_pass.py``. In a test it is one line: ``laws.check(DropDoubleRelu())``.
"""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from lowbit import PassContext, Stage
from lowbit.tools.testing import laws
from torch.fx import GraphModule, Node

RELU = torch.ops.aten.relu.default


@attrs.frozen
class Hasty:
    """Drops a ReLU behind a ReLU. What if the first is a relu6?"""

    name: ClassVar[str] = "hasty-drop-double-relu"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        changed = False
        for node in gm.graph.nodes:
            source = node.args[0] if node.args else None
            if "relu" in str(node.target) and isinstance(source, Node) and "relu" in str(source.target):
                node.replace_all_uses_with(source)
                gm.graph.erase_node(node)
                changed = True
        return changed


@attrs.frozen
class DropDoubleRelu:
    """Drops a ReLU behind a ReLU."""

    name: ClassVar[str] = "drop-double-relu"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        changed = False
        for node in gm.graph.find_nodes(op="call_function", target=RELU):
            if node.args[0].target is RELU:
                node.replace_all_uses_with(node.args[0])
                gm.graph.erase_node(node)
                changed = True
        return changed


if __name__ == "__main__":
    laws.check(DropDoubleRelu())
    print("drop-double-relu keeps all laws; its first version:\n")
    try:
        laws.check(Hasty())
    except laws.LawBroken as broken:
        print(broken)
