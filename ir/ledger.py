"""The ledger: what became of each operator, and why.

Every guard that says no writes a :meth:`Ledger.missed` with a reason code; what was quantized writes
:meth:`Ledger.quantized`. The last entry about a node is its decision.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import attrs
from torch.fx import Node

from .location import module_path, source_line

__all__ = ["Decision", "Ledger"]

_ORIGIN = ("nn_module_stack", "stack_trace")


@attrs.frozen
class Decision:
    """The status of one float operator.

    Args:
        node: name of the node; in a body of ``cond`` and the like behind that of the body: ``body.linear``.
        target: its operator, as text.
        status: "quantized" or "float".
        reason: a kebab-case code ("weight-not-constant"); for quantized nodes, the operator pattern.
        detail: one sentence for people; may be empty.
        module: dotted path of the module that made the node.
        source: source line of the user's model.
        intended: whether it reads a tensor in low precision, or did once it was annotated.
        kernel: what it runs on in low precision, once it is lowered.
        runs_at: name of the node that calls the kernel.
    """

    node: str
    target: str
    status: str
    reason: str
    detail: str = ""
    module: str = ""
    source: str = ""
    intended: bool = False
    kernel: str = ""
    runs_at: str = ""


@attrs.frozen
class _Entry:
    """A decision as it was written down; its source line is looked up when somebody asks."""

    node: str
    target: str
    status: str
    reason: str
    detail: str
    origin: dict[str, Any]
    intended: bool
    kernel: str
    runs_at: str = ""

    def decision(self) -> Decision:
        return Decision(
            self.node,
            self.target,
            self.status,
            self.reason,
            self.detail,
            module=module_path(self.origin),
            source=source_line(self.origin),
            intended=self.intended,
            kernel=self.kernel,
            runs_at=self.runs_at,
        )


@attrs.frozen
class _Said:
    """What is to be written about a node, whoever it is."""

    status: str
    reason: str
    detail: str
    intended: bool
    kernel: str = ""
    runs_at: str = ""


@attrs.define
class Ledger:
    """Collects decisions, one per node, the latest standing."""

    _entries: dict[str, _Entry] = attrs.Factory(dict)

    def quantized(
        self,
        node: Node,
        pattern: str,
        detail: str = "",
        *,
        intended: bool = False,
        kernel: str = "",
        runs_at: str = "",
    ) -> None:
        """``node`` will run in low precision as part of ``pattern``; the rest as in :class:`Decision`."""
        self._write(node, _Said("quantized", pattern, detail, intended, kernel, runs_at))

    def missed(
        self,
        reason: str,
        node: Node,
        detail: str = "",
        *,
        intended: bool = False,
        inside: tuple[Node, str] | None = None,
    ) -> None:
        """``node`` stays float because of ``reason``, unless a later entry says otherwise.

        Args:
            reason: the reason code.
            node: the operator.
            detail: one sentence for people.
            intended: as in :class:`Decision`.
            inside: of a node in a body: the operator whose body it is, and the body's name.
        """
        self._write(node, _Said("float", reason, detail, intended), inside)

    def _write(self, node: Node, said: _Said, inside: tuple[Node, str] | None = None) -> None:
        name = node.name if inside is None else f"{inside[1]}.{node.name}"
        # Bodies are traced apart, and may not say which module they are of.
        sources = (node,) if inside is None else (inside[0], node)
        origin: dict[str, Any] = {}
        for source in sources:
            origin |= {key: value for key in _ORIGIN if (value := source.meta.get(key))}
        before = self._entries.get(name)
        intended = said.intended or (before is not None and before.intended)
        self._entries[name] = _Entry(
            name,
            str(node.target),
            said.status,
            said.reason,
            said.detail,
            origin,
            intended,
            said.kernel,
            said.runs_at,
        )

    def retire(self, names: Container[str]) -> None:
        """Say of what was to be quantized, and is not among the operators ``names``, that it is gone.

        Only what is there for training is: a BatchNorm that nobody reads keeps its convolution alive then.
        """
        for name, entry in self._entries.items():
            is_meant = entry.status == "quantized" and entry.reason != "batch-norm" and not entry.kernel
            if is_meant and name not in names:
                detail = "nothing reads its result in inference"
                self._entries[name] = attrs.evolve(
                    entry, status="float", reason="training-only", detail=detail
                )

    def __contains__(self, node: Node) -> bool:
        return node.name in self._entries

    def says_quantized(self, node: Node) -> bool:
        """Whether the latest entry about ``node`` is that it runs in low precision."""
        entry = self._entries.get(node.name)
        return entry is not None and entry.status == "quantized"

    def reason_of(self, node: Node) -> str | None:
        """The reason of the latest entry about ``node``, or None."""
        entry = self._entries.get(node.name)
        return None if entry is None else entry.reason

    def keep(self, names: Iterable[str]) -> None:
        """Forget all decisions but those about the nodes ``names``, and put these in their order."""
        self._entries = {name: self._entries[name] for name in names}

    def copy(self) -> Ledger:
        """A ledger with the same decisions, independent of this one."""
        return Ledger(dict(self._entries))

    @property
    def entries(self) -> tuple[_Entry, ...]:
        """What :attr:`decisions` is made of; source lines, which take a while, are not looked up."""
        return tuple(self._entries.values())

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions, in graph order once ``annotate`` is through, before that as nodes are first met."""
        return tuple(entry.decision() for entry in self._entries.values())
