"""A snapshot with what its nodes may have in common with those of another graph: names aside, what they do,
where they come from, and who they were."""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable

import attrs
from torch.fx import Node

from .arguments import inputs, shape
from .location import module_path, source_line
from .snapshot import NodeRecord, Snapshot

__all__ = ["ComparableGraph", "deed"]


def deed(record: NodeRecord, snapshot: Snapshot) -> Hashable:
    """What a node does, without its arguments: the operator; of a module the name of its class, since the
    names of observers are numbers."""
    if record.op != "call_module":
        return record.op, record.target
    attribute = snapshot.attributes[record.target]
    return record.op, "" if attribute is None else type(attribute.value).__qualname__


@attrs.frozen(eq=False)
class ComparableGraph:
    """One of two graphs.

    The methods are keys: nodes of the two graphs with equal keys have something in common, ``None`` nothing.

    Args:
        snapshot: the graph.
        inputs: what each node reads, in the order of its arguments.
        users: who reads each node, and at which position among its inputs.
    """

    snapshot: Snapshot
    inputs: dict[Node, list[Node]]
    users: dict[Node, list[tuple[Node, int]]]
    _deeds: dict[Node, Hashable]
    _shapes: dict[Node, str]
    _origins: dict[Node, tuple[str, str]]

    @classmethod
    def of(cls, snapshot: Snapshot) -> ComparableGraph:
        """The graph of a snapshot."""
        records = snapshot.records
        # Nodes of other graphs, which only a broken graph reads, are nobody's inputs.
        sources = {node: [i for i in inputs(record) if i in records] for node, record in records.items()}
        users: dict[Node, list[tuple[Node, int]]] = {node: [] for node in records}
        for node, read in sources.items():
            for position, source in enumerate(read):
                users[source].append((node, position))
        deeds = {node: deed(record, snapshot) for node, record in records.items()}
        shapes = {node: shape(record) for node, record in records.items()}
        return cls(snapshot, sources, users, deeds, shapes, {node: _origin(node) for node in records})

    def deed(self, node: Node) -> Hashable:
        """What the node does, without its arguments."""
        return self._deeds[node]

    def shape(self, node: Node) -> str:
        """The arguments of the node, without the nodes among them."""
        return self._shapes[node]

    def exact(self, node: Node) -> Hashable:
        """What the node does, literals included."""
        return self._deeds[node], self._shapes[node]

    def exact_at_origin(self, node: Node) -> Hashable:
        """What the node does, and the module and line of code that it comes from."""
        return self._deeds[node], self._shapes[node], self._origins[node]

    def deed_at_origin(self, node: Node) -> Hashable:
        """Likewise, without literals."""
        return self._deeds[node], self._origins[node]

    def deed_at_known_origin(self, node: Node) -> Hashable | None:
        """Likewise, of nodes that say where they come from."""
        return self.deed_at_origin(node) if all(self._origins[node]) else None

    def name_at_known_origin(self, node: Node) -> Hashable | None:
        """The name of the node where it comes from: in one line of code, exporters count alike."""
        record, origin = self.snapshot.records[node], self._origins[node]
        return (self.kind(node), origin, record.name) if all(origin) else None

    def kind_at_origin(self, node: Node) -> Hashable:
        """The kind of node, and where it comes from."""
        return self.kind(node), self._origins[node]

    def kind(self, node: Node) -> tuple[str, str]:
        """What the node remains whatever passes do: a call, or an attribute or input of a name."""
        record = self.snapshot.records[node]
        return record.op, str(record.target) if record.op in ("get_attr", "placeholder") else ""

    def name(self, node: Node) -> Hashable | None:
        """The name of an attribute or input; that a node is the output."""
        kind = self.kind(node)
        return kind if kind[0] in ("get_attr", "placeholder", "output") else None

    def ids(self) -> dict[Node, int]:
        """The ids of the nodes that have one."""
        return {node: r.id for node, r in self.snapshot.records.items() if r.id is not None}


def _origin(node: Node) -> tuple[str, str]:
    return module_path(node.meta), _code(node.meta.get("stack_trace") or "")


@functools.lru_cache(maxsize=10_000)
def _code(trace: str) -> str:
    # The number of a line is another one in every edition of a file.
    return re.sub(r":\d+: ", ": ", source_line({"stack_trace": trace}), count=1)
