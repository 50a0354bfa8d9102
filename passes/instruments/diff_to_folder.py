"""Diffs as files: one a pass, for reading with any pager or editor."""

from __future__ import annotations

from pathlib import Path

import attrs
from torch.fx import GraphModule

from ..base import Pass
from ..pipeline import format_pass
from .base import Change

__all__ = ["DiffToFolder"]


@attrs.define
class DiffToFolder:
    """Writes ``NN-pass-name.diff`` into a folder for every pass, numbered over all runs it is handed to.

    Args:
        path: the folder; made if it is not there. Diffs of an earlier run in it are removed first.
    """

    path: Path = attrs.field(converter=Path)
    _count: int = attrs.field(default=0, init=False)

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Make the folder ready at the first pass."""
        if self._count == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            for old in self.path.glob("[0-9][0-9]*-*.diff"):
                old.unlink()

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Write the diff of the pass."""
        text = f"# {format_pass(pass_)}: {change.diff.stat}\n" + "".join(
            f"{line}\n" for line in change.diff.lines
        )
        (self.path / f"{self._count:02}-{pass_.name}.diff").write_text(text, encoding="utf-8")
        self._count += 1
