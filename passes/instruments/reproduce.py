"""Reproducers: one file that makes a failing pass fail again, anywhere."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import attrs
import torch
from torch.fx import GraphModule

from ...errors import LowbitError
from ...ir.clone import clone_graph_module
from ...ir.text import to_tensors
from ...ir.text.tensors import to_bytes
from ...ir.text.writer import take_apart
from ..base import Pass, PassContext
from ..pipeline import format_pass
from .base import Change

__all__ = ["Reproducer", "write_reproducer"]

_log = logging.getLogger("lowbit.passes")

# A zip file with this in it is a program to Python.
_MAIN: Final = """\
\"\"\"python THIS_FILE: runs the pass on the graph once more, and raises what it raises.\"\"\"

import sys

from lowbit.tools.bisect import replay

replay(sys.argv[0])
sys.stderr.write("the pass did not fail\\n")
"""
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)


@attrs.define
class Reproducer:
    """When a pass raises, or breaks the rules of the stage, writes ``PASS-NAME.zip`` into a folder.

    The file holds the graph as it was before the pass, with its tensors, the pass as pipelines write it, and
    what it needs besides; ``python PASS-NAME.zip`` runs the pass on it. It is data of the model: weights are
    in it. The graph is copied before every pass, which adds some 40 % to the time of ``prepare``.

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

    def failed(self, pass_: Pass, context: PassContext, error: Exception) -> None:
        """Write the file, and say so in the log and in a note of ``error``."""
        if self._before is None or self._before[0] is not pass_:
            return  # it did not get as far as to be run
        path = self.folder / f"{pass_.name}.zip"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            write_reproducer(path, self._before[1], pass_, context, error)
        except LowbitError as refusal:
            # The error at hand is the one to hear of.
            _log.warning("no reproducer of %s was written: %s", pass_.name, refusal)
            return
        self.written.append(path)
        _log.warning("a reproducer was written: python %s", path)
        error.add_note(f"to see it again: python {path}")


def write_reproducer(
    path: Path, gm: GraphModule, pass_: Pass, context: PassContext, error: Exception
) -> None:
    """Write a reproducer of ``pass_`` failing on ``gm``. Equal graphs and errors give equal bytes.

    Raises:
        UnsupportedError: something that the file cannot hold (:func:`lowbit.ir.text.to_text`).
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in _files(gm, pass_, context, error):
            file.writestr(zipfile.ZipInfo(name, _LONG_AGO), content)


def _files(
    gm: GraphModule, pass_: Pass, context: PassContext, error: Exception
) -> Iterator[tuple[str, str | bytes]]:
    parts = take_apart(gm)
    about = {
        "pipeline": format_pass(pass_),
        "error": str(error),
        "error_type": type(error).__name__,
        "backend": context.backend,
        "imports": [*parts.imports, type(pass_).__module__],
        "lowbit": version("lowbit"),
        "torch": torch.__version__,
    }
    yield "__main__.py", _MAIN
    yield "about.json", json.dumps(about, indent=2) + "\n"
    yield "graph.lowbit", parts.text
    yield "graph.safetensors", to_bytes(to_tensors(gm))
    if context.quantizer is not None:
        try:
            yield "quantizer.pickle", pickle.dumps(context.quantizer)
        except (pickle.PicklingError, AttributeError, TypeError) as refusal:
            # Of a class defined in a function, say. Whoever replays hands one in.
            _log.warning("the quantizer is not in the reproducer: %s", refusal)
