"""Timing: how long each pass took and what it did to the size of the graph."""

from __future__ import annotations

import attrs
from torch.fx import GraphModule

from ..base import Pass
from .base import Change

__all__ = ["PassRecord", "Timing"]


@attrs.frozen
class PassRecord:
    """One pass of one run."""

    pass_name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    changed: bool


@attrs.define
class Timing:
    """Collects a :class:`PassRecord` per pass, over all runs it is handed to."""

    records: list[PassRecord] = attrs.Factory(list)

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Nothing to do: the manager measures."""

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Record the pass."""
        self.records.append(
            PassRecord(
                pass_name=pass_.name,
                seconds=change.seconds,
                nodes_before=len(change.before.records),
                nodes_after=len(change.after.records),
                changed=change.changed,
            )
        )
