"""The ledger: what became of each operator, and why.

Every guard that says no writes a :meth:`Ledger.missed` with a reason code; what was quantized writes
:meth:`Ledger.quantized`. The last entry about a node is its decision.
"""

from __future__ import annotations

from typing import Any

import attrs
from torch.fx import Node

from .location import module_path, source_line

__all__ = ["Decision", "Ledger"]


@attrs.frozen
class Decision:
    """The status of one float operator.

    Args:
        node: name of the node.
        target: its operator, as text.
        status: "quantized" or "float".
        reason: a kebab-case code ("weight-not-constant"); for quantized nodes, the operator pattern.
        detail: one sentence for people; may be empty.
        module: dotted path of the module that made the node.
        source: source line of the user's model.
    """

    node: str
    target: str
    status: str
    reason: str
    detail: str = ""
    module: str = ""
    source: str = ""


@attrs.frozen
class _Entry:
    """A decision as it was written down; its source line is looked up when somebody asks."""

    node: str
    target: str
    status: str
    reason: str
    detail: str
    origin: dict[str, Any]

    def decision(self) -> Decision:
        return Decision(
            self.node,
            self.target,
            self.status,
            self.reason,
            self.detail,
            module=module_path(self.origin),
            source=source_line(self.origin),
        )


@attrs.define
class Ledger:
    """Collects decisions, one per node, the latest standing."""

    _entries: dict[str, _Entry] = attrs.Factory(dict)

    def _write(self, node: Node, status: str, reason: str, detail: str) -> None:
        origin = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
        self._entries[node.name] = _Entry(node.name, str(node.target), status, reason, detail, origin)

    def quantized(self, node: Node, pattern: str, detail: str = "") -> None:
        """``node`` will run in low precision as part of ``pattern``."""
        self._write(node, "quantized", pattern, detail)

    def missed(self, reason: str, node: Node, detail: str = "") -> None:
        """``node`` stays float because of ``reason``, unless a later entry says otherwise."""
        self._write(node, "float", reason, detail)

    def __contains__(self, node: Node) -> bool:
        return node.name in self._entries

    def says_quantized(self, node: Node) -> bool:
        """Whether the latest entry about ``node`` is that it runs in low precision."""
        entry = self._entries.get(node.name)
        return entry is not None and entry.status == "quantized"

    def copy(self) -> Ledger:
        """A ledger with the same decisions, independent of this one."""
        return Ledger(dict(self._entries))

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions, in the order the nodes were first met."""
        return tuple(entry.decision() for entry in self._entries.values())
