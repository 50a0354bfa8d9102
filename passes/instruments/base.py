"""What an instrument is: an observer of passes, which the manager calls and knows nothing else of."""

from __future__ import annotations

import functools
from typing import Protocol, runtime_checkable

import attrs
from torch.fx import GraphModule

from ...ir.graph_diff import GraphDiff, diff
from ...ir.snapshot import Snapshot
from ..base import Pass, PassContext

__all__ = ["Change", "FailureInstrument", "Instrument"]


@attrs.frozen(eq=False)
class Change:
    """What one pass did to the graph.

    Args:
        index: position of the pass in the run, counting from 0.
        before: the graph before the pass.
        after: the graph after it.
        seconds: wall time of the pass's ``run`` alone.
    """

    index: int
    before: Snapshot
    after: Snapshot
    seconds: float

    @functools.cached_property
    def changed(self) -> bool:
        """Whether anything changed."""
        return not self.before.same_as(self.after)

    @functools.cached_property
    def diff(self) -> GraphDiff:
        """The changes, node by node; made when first asked for."""
        return diff(self.before, self.after)


class Instrument(Protocol):
    """Something that looks on while passes run. It must not change the graph."""

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Called before each pass."""
        ...

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Called after each pass that did not raise; ``gm`` is already at the pass's ``ensures`` stage."""
        ...


@runtime_checkable
class FailureInstrument(Protocol):
    """An instrument that is told of failures too."""

    def failed(
        self, pass_: Pass, context: PassContext, error: Exception, raised_by: Instrument | None
    ) -> None:
        """Called when ``pass_``, or the instrument ``raised_by`` that looked on, raised ``error``."""
        ...
