"""The ledger: what became of each operator, and why.

Every guard that says no writes a :meth:`Ledger.missed` with a reason code; what was quantized writes
:meth:`Ledger.quantized`. The last entry about a node is its decision. What a pass takes out of the graph, so
that nothing is left to decide about, is :meth:`Ledger.removed`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import attrs
from torch.fx import Node

from .gone import Gone, GoneEntry, Why
from .location import module_path, source_line, target_text
from .near_miss import NearMiss

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
        note: a reason code of what more could have been done where it runs in low precision, and was not, as
            of a kernel that was not merged with others; mostly empty. The detail says it in words.
        nearest: of what stays float, the operator pattern that it is almost part of, as far as there is one.
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
    note: str = ""
    nearest: NearMiss | None = None


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
    note: str = ""
    nearest: NearMiss | None = None

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
            note=self.note,
            nearest=self.nearest,
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
    """Collects decisions, one per node, the latest standing.

    That of a model has those of its bodies too, under the names of the bodies. See :meth:`inside`.
    """

    _parts: dict[str, dict[str, _Entry]] = attrs.Factory(dict)
    """By what the names of the nodes of a graph begin with: the entries about them, by their names."""
    _gone: dict[str, GoneEntry] = attrs.Factory(dict)
    _prefix: str = ""
    _origin: dict[str, Any] = attrs.Factory(dict)

    @staticmethod
    def of(entries: Iterable[_Entry], gone: Iterable[GoneEntry] = ()) -> Ledger:
        """A ledger with :attr:`entries` and :attr:`gone_entries` of another."""
        ledger = Ledger({}, {entry.node: entry for entry in gone})
        for entry in entries:
            body, dot, _ = entry.node.rpartition(".")
            ledger._parts.setdefault(body + dot, {})[entry.node] = entry
        return ledger

    def inside(self, body: str, callers: Iterable[Node]) -> Ledger:
        """The part of this ledger about the nodes of a body of ``cond`` and the like.

        What is written to one is in the other. Nodes are asked about as in any ledger; here they go by
        ``body.name``.

        Args:
            body: the name of the body.
            callers: what runs it, behind what runs the bodies it is in. Bodies are traced apart, and may not
                say which module they are of: then they are of that of the nearest caller that says.
        """
        origin = dict(self._origin)
        for caller in callers:
            origin |= _origin_of(caller)
        return Ledger(self._parts, self._gone, f"{self._prefix}{body}.", origin)

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
    ) -> None:
        """``node`` stays float because of ``reason``, unless a later entry says otherwise.

        Args:
            reason: the reason code.
            node: the operator.
            detail: one sentence for people.
            intended: as in :class:`Decision`.
        """
        self._write(node, _Said("float", reason, detail, intended))

    def almost(self, node: Node, miss: NearMiss) -> None:
        """``node``, which stays float, is almost part of a pattern; of several the nearest is kept.

        It goes with the decision for as long as that is float, whatever the reason.
        """
        name = self.name_of(node)
        entry = self._own[name]
        if entry.nearest is None or miss.distance < entry.nearest.distance:
            at = attrs.evolve(miss, node=self._prefix + miss.node)
            self._own[name] = attrs.evolve(entry, nearest=at)

    def removed(self, node: Node, why: Why, *, by: str, into: Node | None = None) -> None:
        """The pass ``by`` takes ``node`` out of the graph; the rest as in :class:`~lowbit.ir.gone.Gone`."""
        name = self.name_of(node)
        stands = "" if into is None else self.name_of(into)
        self._gone[name] = GoneEntry(name, why, stands, by, self._origin | _origin_of(node))

    def _write(self, node: Node, said: _Said) -> None:
        name = self.name_of(node)
        origin = self._origin | _origin_of(node)
        own = self._own
        before = own.get(name)
        intended = said.intended or (before is not None and before.intended)
        own[name] = _Entry(
            name,
            target_text(node.target),
            said.status,
            said.reason,
            said.detail,
            origin,
            intended,
            said.kernel,
            said.runs_at and self._prefix + said.runs_at,
            nearest=before.nearest if before is not None and said.status == "float" else None,
        )

    @property
    def _own(self) -> dict[str, _Entry]:
        """The entries about nodes of the graph that this ledger is of; of no body in it."""
        return self._parts.setdefault(self._prefix, {})

    def retire(self, names: Container[str]) -> None:
        """Say of what was to be quantized, and is not among the operators ``names``, that it is gone.

        Only what is there for training is: a BatchNorm that nobody reads keeps its convolution alive then.
        """
        own = self._own
        for name, entry in own.items():
            is_meant = entry.status == "quantized" and entry.reason != "batch-norm" and not entry.kernel
            if is_meant and name.removeprefix(self._prefix) not in names:
                detail = "nothing reads its result in inference"
                own[name] = attrs.evolve(entry, status="float", reason="training-only", detail=detail)

    def moved(self, kernels: Mapping[str, str], kernel: str = "") -> None:
        """What ran at the nodes ``kernels`` runs at those they are given, by ``kernel`` if it is named."""
        for entry, node in self._running_at(kernels):
            by = kernel or entry.kernel
            detail = entry.detail.replace(f"runs as {entry.kernel}", f"runs as {by}", 1)
            self._own[entry.node] = attrs.evolve(
                entry, runs_at=self._prefix + kernels[node], kernel=by, detail=detail
            )

    def noted(self, notes: Mapping[str, tuple[str, str]]) -> None:
        """Of what runs at the nodes ``notes``, what more could have been done: a code, and in words."""
        for entry, node in self._running_at(notes):
            code, words = notes[node]
            if entry.note != code or not entry.detail.endswith(words):  # a pass may run twice
                self._own[entry.node] = attrs.evolve(entry, note=code, detail=f"{entry.detail}; {words}")

    def _running_at(self, nodes: Container[str]) -> Iterator[tuple[_Entry, str]]:
        for entry in list(self._own.values()):
            node = entry.runs_at.removeprefix(self._prefix)
            if entry.runs_at and node in nodes:
                yield entry, node

    def is_of_the_model_of(self, other: Ledger) -> bool:
        """Whether both are about one model, bodies in it included."""
        return self._parts is other._parts

    def __contains__(self, node: Node) -> bool:
        return self.name_of(node) in self._own

    def name_of(self, node: Node) -> str:
        """What ``node`` goes by in the decisions: in a body its name is behind that of the body."""
        return self._prefix + node.name

    def says_quantized(self, node: Node) -> bool:
        """Whether the latest entry about ``node`` is that it runs in low precision."""
        entry = self._own.get(self.name_of(node))
        return entry is not None and entry.status == "quantized"

    def reason_of(self, node: Node) -> str | None:
        """The reason of the latest entry about ``node``, or None."""
        entry = self._own.get(self.name_of(node))
        return None if entry is None else entry.reason

    def keep(self, names: Iterable[str]) -> None:
        """Forget all decisions but those about the nodes ``names``, and put these in their order.

        Those about other graphs stay.
        """
        own = self._parts.pop(self._prefix, {})
        self._parts[self._prefix] = {name: own[name] for name in (self._prefix + name for name in names)}

    def copy(self) -> Ledger:
        """A ledger with the same decisions, independent of this one."""
        parts = {prefix: dict(part) for prefix, part in self._parts.items()}
        return Ledger(parts, dict(self._gone), self._prefix, self._origin)

    @property
    def entries(self) -> tuple[_Entry, ...]:
        """What :attr:`decisions` is made of; source lines, which take a while, are not looked up."""
        # Those about a model come before those about its bodies.
        parts = (self._parts.get("", {}), *(part for prefix, part in self._parts.items() if prefix))
        return tuple(entry for part in parts for entry in part.values())

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions, in graph order once ``annotate`` is through, before that as nodes are first met.

        Those about bodies come behind those about the model.
        """
        return tuple(entry.decision() for entry in self.entries)

    @property
    def gone_entries(self) -> tuple[GoneEntry, ...]:
        """What :attr:`gone` is made of."""
        return tuple(self._gone.values())

    @property
    def gone(self) -> tuple[Gone, ...]:
        """The operators that passes took out, of the model and of its bodies, in the order they went."""
        return tuple(entry.gone() for entry in self._gone.values())


def _origin_of(node: Node) -> dict[str, Any]:
    return {key: value for key in _ORIGIN if (value := node.meta.get(key))}
