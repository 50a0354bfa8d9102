"""Diffs as JSON, for tools: one line a pass, in the form that ``pass-diff.schema.json`` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from torch.fx import GraphModule

from ...ir.graph_diff import AttributeChange, GraphDiff, NodeChange
from ...ir.location import module_path, source_line
from ...ir.meta import ORIGIN_KEY
from ...ir.stages import get_stage
from ..base import Pass
from ..pipeline import format_pass
from .base import Change

__all__ = ["SCHEMA", "DiffToJson", "change_as_data", "diff_as_data"]

SCHEMA = Path(__file__).with_name("pass-diff.schema.json")
"""The JSON Schema of a line."""


@attrs.define
class DiffToJson:
    """Writes one line of JSON for every pass, numbered over all runs it is handed to.

    The same run gives the same bytes. :data:`SCHEMA` is the schema of a line.

    Args:
        path: the file; what it held is gone at the first pass.
    """

    path: Path = attrs.field(converter=Path)
    _count: int = attrs.field(default=0, init=False)

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Begin the file at the first pass."""
        if self._count == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("", encoding="utf-8")

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Add the line of the pass."""
        line = change_as_data(self._count, pass_, gm, change)
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._count += 1


def change_as_data(index: int, pass_: Pass, gm: GraphModule, change: Change) -> dict[str, Any]:
    """What the pass of number ``index`` did as what JSON can hold; in the form of :data:`SCHEMA`."""
    return {
        "format": "lowbit-pass-diff",
        "version": 1,
        "index": index,
        "pass": format_pass(pass_),
        "stage": get_stage(gm).name,
        "node_count": len(change.after.records),
        "diff": diff_as_data(change.diff),
    }


def diff_as_data(diff: GraphDiff) -> dict[str, Any]:
    """A diff as what JSON can hold; ``diff`` in :data:`SCHEMA`."""
    return {
        "counts": dict(diff.counts),
        "nodes": [_node(change) for change in diff.nodes],
        "attributes": [_attribute(change) for change in diff.attributes],
    }


def _node(change: NodeChange) -> dict[str, Any]:
    record = change.after or change.before
    assert record is not None  # a change is of one node at least
    origin = change.node.meta.get(ORIGIN_KEY)
    return {
        "name": record.name,
        "id": record.id,
        "aspects": list(change.aspects),
        "before": None if change.before is None or change.old is None else change.before.text(change.old),
        "after": None if change.after is None or change.new is None else change.after.text(change.new),
        "module": module_path(change.node.meta),
        "source": source_line(change.node.meta),
        "made_by": None if origin is None else origin[0],
        "made_from": None if origin is None else origin[1],
    }


def _attribute(change: AttributeChange) -> dict[str, Any]:
    return {
        "target": change.target,
        "kind": change.kind,
        "graph": None if change.graph is None else diff_as_data(change.graph),
    }
