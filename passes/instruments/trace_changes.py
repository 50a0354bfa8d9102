"""Changes in torch's structured trace, where the tools that read it (``tlparse``) show them.

torch writes the trace when ``TORCH_TRACE`` names a folder. This is the one module that uses
``torch._logging``; ``tests/passes/instruments/test_trace_changes.py`` says when it moves.
"""

from __future__ import annotations

import logging
from typing import Final

import attrs
from torch._logging._internal import LazyTraceHandler, trace_structured
from torch.fx import GraphModule

from ..base import Pass
from ..pipeline import format_pass
from .base import Change

__all__ = ["TraceChanges"]

_TRACE: Final = logging.getLogger("torch.__trace")


@attrs.frozen
class TraceChanges:
    """Writes the diff of every pass that changed something as an artifact, ``lowbit_NN_pass-name``, numbered
    within its run.

    Costs nothing while no trace is written.
    """

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Nothing to do."""

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Write the diff of the pass."""
        if _is_written() and change.diff:
            name = f"lowbit_{change.index:02}_{pass_.name}"
            trace_structured(
                "artifact",
                metadata_fn=lambda: {"name": name, "encoding": "string"},
                payload_fn=lambda: f"# {format_pass(pass_)}: {change.diff.stat}\n{change.diff}\n",
                expect_trace_id=False,
            )


def _is_written() -> bool:
    # Until its first record, torch keeps a handler that would find out that there is no folder to write to.
    return any(isinstance(h, LazyTraceHandler) and h.root_dir is not None for h in _TRACE.handlers)
