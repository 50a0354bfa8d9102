"""Verification between passes: the rules of the stage a graph claims to be at."""

from __future__ import annotations

import attrs
from torch.fx import GraphModule

from ...ir.stages import get_stage
from ...ir.verifiers import verify
from ..base import Pass
from .base import Change

__all__ = ["Verify"]


@attrs.frozen
class Verify:
    """Checks the stage's rules after every pass that changed something."""

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Nothing to do: what was true after the last pass still is."""

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Raise StageError if the graph breaks a rule of its stage."""
        if change.changed or pass_.ensures is not None:
            verify(gm, get_stage(gm))
