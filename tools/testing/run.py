"""What a law looks at: one run of a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
from torch.fx import GraphModule

from ...ir.ledger import Ledger
from ...passes import Pass, PassContext
from ...passes.instruments import Change

__all__ = ["Law", "LawBroken", "Run"]


class LawBroken(AssertionError):  # noqa: N818  (it says what happened)
    """A pass broke a law.

    Args:
        text: what was found.
        law: the name of the law, where it is known.
    """

    def __init__(self, text: str, *, law: str = "") -> None:
        super().__init__(text)
        self.law = law


@attrs.frozen(eq=False)
class Run:
    """One run of a pass.

    Args:
        pass_: the pass.
        before: the graph it was run on.
        after: the graph it made.
        said: whether it said that it changed anything.
        change: what it changed.
        inputs: of the graph.
        context: that it ran in; its ledger has what the pass entered.
        told: what the passes before entered in theirs.
        again: runs the pass on another graph in the same way.
    """

    pass_: Pass
    before: GraphModule
    after: GraphModule
    said: bool
    change: Change
    inputs: tuple[Any, ...]
    context: PassContext
    told: Ledger
    again: Callable[[GraphModule], Run]


Law: TypeAlias = Callable[[Run], None]
