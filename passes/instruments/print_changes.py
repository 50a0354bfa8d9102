"""Changes on the terminal, pass by pass."""

from __future__ import annotations

import attrs
from rich.console import Console
from rich.text import Text
from torch.fx import GraphModule

from ..base import Pass
from ..pipeline import format_pass
from .base import Change
from .render_diff import render_diff, render_stat

__all__ = ["PrintChanges"]


@attrs.frozen
class PrintChanges:
    """Prints what each pass changed; a pass that changed nothing is not mentioned.

    Args:
        console: where to; by default the terminal.
        stat: print counts by module rather than every node.
    """

    console: Console = attrs.field(factory=Console)
    stat: bool = False

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Nothing to do."""

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Print the changes of the pass."""
        if change.diff:
            self.console.print(
                Text(f"{change.index:02} {format_pass(pass_)}: {change.diff.stat}", style="bold")
            )
            self.console.print(render_stat(change.diff) if self.stat else render_diff(change.diff))
