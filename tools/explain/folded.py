"""BatchNorms that are gone because they were folded into the operator before them."""

from __future__ import annotations

import attrs
from torch.fx import GraphModule

from ...ir.meta import FOLDED_KEY

__all__ = ["FoldedExplanation", "folded_into"]


@attrs.frozen
class FoldedExplanation:
    """Where a BatchNorm went.

    Args:
        node: the name that its call had.
        module: dotted path of its module.
        into: name of the convolution or linear whose weight and bias it is part of now.
        by: the pass that folded it.
    """

    node: str
    module: str
    into: str
    by: str

    def __str__(self) -> str:
        who = f"%{self.node} in {self.module}" if self.module else f"%{self.node}"
        return f"{who} was folded into the weight and bias of %{self.into}, by the pass {self.by}"


def folded_into(model: GraphModule, about: str) -> tuple[FoldedExplanation, ...]:
    """The folded BatchNorms that ``about`` names: a node of the float graph, or a module."""
    gone: dict[str, tuple[str, str, str]] = model.meta.get(FOLDED_KEY, {})
    found = (FoldedExplanation(node, module, into, by) for node, (into, module, by) in gone.items())
    return tuple(each for each in found if about == each.node or f"{each.module}.".startswith(f"{about}."))
