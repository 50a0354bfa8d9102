"""Reproducers: one file that makes a failing pass fail again, anywhere."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Final

import attrs
from torch.fx import GraphModule

from ...ir.clone import clone_graph_module
from ..base import Pass, PassContext
from .base import Change, Instrument
from .reproducer_file import write_reproducer
from .verify import Verify

__all__ = ["AGAIN", "Reproducer"]

_log = logging.getLogger("lowbit.passes")

AGAIN: Final = "to see it again: "
"""What the note begins with that an error gets."""


@attrs.define
class Reproducer:
    """When a pass raises, or breaks the rules of the stage, writes ``PASS-NAME.zip`` into a folder.

    The file holds the graph as it was before the pass, with its tensors, the pass as pipelines write it, and
    what it needs besides; ``python PASS-NAME.zip`` runs the pass on it. It is data of the model: weights are
    in it. The graph is copied before every pass, which adds some 40 % to the time of ``prepare``.

    A file that is there is kept: the next one is ``PASS-NAME-2.zip``. What other instruments raise is not the
    pass's failure and is not written. Where no file can be written the log says why.

    Args:
        folder: where to; made when it is needed.
        written: the files written so far.
    """

    folder: Path = attrs.field(converter=Path)
    written: list[Path] = attrs.field(factory=list, init=False)
    _before: tuple[Pass, GraphModule] | None = attrs.field(default=None, init=False)

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Keep the graph."""
        self._before = pass_, clone_graph_module(gm)

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Nothing to do."""

    def failed(
        self, pass_: Pass, context: PassContext, error: Exception, raised_by: Instrument | None
    ) -> None:
        """Write the file, and say so in the log and in a note of ``error``."""
        if self._before is None or self._before[0] is not pass_:
            return  # it did not get as far as to be run
        if raised_by is not None and not isinstance(raised_by, Verify):
            kind = type(raised_by).__name__
            _log.info("no reproducer of %s was written: the instrument %s raised", pass_.name, kind)
            return
        try:
            path, lacks = self._write(self._before[1], pass_, context, error)
        except Exception as refusal:  # noqa: BLE001  (the error at hand is the one to hear of)
            _log.warning(
                "no reproducer of %s was written: %s: %s", pass_.name, type(refusal).__name__, refusal
            )
            return
        self.written.append(path)
        again = f"python {path}"
        if lacks:
            again = f"lowbit.tools.bisect.replay({str(path)!r}), as the file lacks {'; '.join(lacks)}"
        _log.warning("a reproducer was written: %s", again)
        error.add_note(AGAIN + again)

    def _write(
        self, gm: GraphModule, pass_: Pass, context: PassContext, error: Exception
    ) -> tuple[Path, tuple[str, ...]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = _take_name(self.folder, pass_.name)
        try:
            return path, write_reproducer(path, gm, pass_, context, error)
        except Exception:
            path.unlink(missing_ok=True)
            raise


def _take_name(folder: Path, name: str) -> Path:
    """A new, empty file: processes that fail side by side do not get the same one."""
    for number in itertools.count(2):
        path = folder / f"{name}.zip"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            name = f"{name.removesuffix(f'-{number - 1}')}-{number}"
        else:
            return path
    raise AssertionError
