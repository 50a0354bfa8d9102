"""What changed between two snapshots: which nodes, and in what respect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final, Literal, TypeAlias, get_args

import attrs
from torch.fx import Node

from .alignment import align
from .arguments import inputs, literals, shape
from .comparable_graph import deed
from .group_labels import GroupLabels
from .points import map_points
from .snapshot import NodeRecord, Snapshot, changed_attributes
from .specs import EdgeOrNode
from .subsequences import longest_kept_order

__all__ = ["ASPECTS", "Aspect", "AttributeChange", "GraphDiff", "NodeChange", "diff"]

Aspect: TypeAlias = Literal[
    "added", "removed", "retargeted", "rewired", "edited", "annotated", "renamed", "moved"
]
ASPECTS: Final[tuple[Aspect, ...]] = get_args(Aspect)
"""In what respect a node changed: it was added, removed; calls another operator; reads other nodes; has other
literals among its arguments; has another annotation, sharing group or kernel; has another name; stands
elsewhere in the order of nodes."""


@attrs.frozen(eq=False)
class NodeChange:
    """What happened to one node.

    Args:
        aspects: in what respects it changed, in the order of :data:`ASPECTS`.
        old: the node before; None when it was added.
        new: the node after; None when it was removed.
        before: what it was.
        after: what it is.
    """

    aspects: tuple[Aspect, ...]
    old: Node | None
    new: Node | None
    before: NodeRecord | None
    after: NodeRecord | None

    @property
    def node(self) -> Node:
        """The node, after if there is one."""
        node = self.new or self.old
        assert node is not None
        return node

    @property
    def lines(self) -> tuple[str, ...]:
        """The change as text: the node before behind ``-``, after behind ``+``, or behind ``>`` if it was
        moved and nothing else."""
        before = None if self.before is None or self.old is None else self.before.text(self.old)
        after = None if self.after is None or self.new is None else self.after.text(self.new)
        if self.aspects == ("moved",):
            return (f"> {after}",)
        return tuple(f"{sign} {text}" for sign, text in (("-", before), ("+", after)) if text is not None)


@attrs.frozen
class AttributeChange:
    """What happened to something that nodes refer to by name.

    Args:
        target: the dotted name.
        kind: "replaced", "written" into, or "graph": a nested graph that changed.
        graph: how the nested graph changed.
    """

    target: str
    kind: Literal["replaced", "written", "graph"]
    graph: GraphDiff | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """The change as text, a nested graph indented."""
        if self.graph is not None:
            inside = (f"    {line}" for line in self.graph.lines)
            return (f"@ graph {self.target}: {self.graph.stat}", *inside)
        return (f"@ attribute {self.target} {'written into' if self.kind == 'written' else 'replaced'}",)


@attrs.frozen
class GraphDiff:
    """What changed between two snapshots. A node that was not touched is not in it.

    Args:
        nodes: the nodes that changed, where they stand; removed ones where they stood.
        attributes: the attributes that changed.
    """

    nodes: tuple[NodeChange, ...]
    attributes: tuple[AttributeChange, ...]

    def __bool__(self) -> bool:
        return bool(self.nodes or self.attributes)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """As text: ``+`` added, ``-`` removed, ``-`` and ``+`` changed, ``>`` moved, ``@`` attributes."""
        return tuple(line for change in (*self.nodes, *self.attributes) for line in change.lines)

    def having(self, aspect: Aspect) -> tuple[Node, ...]:
        """The nodes that changed in this respect."""
        return tuple(change.node for change in self.nodes if aspect in change.aspects)

    @property
    def added(self) -> tuple[Node, ...]:
        """The nodes that were not there before."""
        return self.having("added")

    @property
    def removed(self) -> tuple[Node, ...]:
        """The nodes that are no more."""
        return self.having("removed")

    @property
    def moved(self) -> tuple[Node, ...]:
        """The nodes that stand elsewhere, as few as can be."""
        return self.having("moved")

    @property
    def changed(self) -> tuple[Node, ...]:
        """The nodes that are something else than they were, wherever they stand."""
        return tuple(c.node for c in self.nodes if c.aspects not in (("added",), ("removed",), ("moved",)))

    @property
    def counts(self) -> dict[Aspect, int]:
        """How many nodes changed in each respect; those that none did are left out."""
        counted = Counter(aspect for change in self.nodes for aspect in change.aspects)
        return {aspect: counted[aspect] for aspect in ASPECTS if counted[aspect]}

    @property
    def stat(self) -> str:
        """One line of counts."""
        return (
            f"{len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} changed, "
            f"{len(self.moved)} moved, {len(self.attributes)} attributes"
        )


def diff(before: Snapshot, after: Snapshot) -> GraphDiff:
    """Compare two snapshots, of one graph at two moments or of two graphs.

    Nodes are aligned as :func:`~lowbit.ir.alignment.align` says. What a node reads is what it read before as
    long as that is the same node, whatever became of it. Of two graphs, names and numbers that were only
    counted up are not compared: those of nodes, of observers and of sharing groups.
    """
    return _Comparison(before, after).diff()


class _Comparison:
    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self.before, self.after = before, after
        self.new_of = align(before, after)
        self.old_of = {new: old for old, new in self.new_of.items()}
        # Most diffs are of one graph, whose nodes are the same objects.
        self.is_of_one_graph = any(old is new for old, new in self.new_of.items())
        self.has_new_objects = any(old is not new for old, new in self.new_of.items())
        if not self.is_of_one_graph:
            old, new = before.records, after.records
            self.groups_before = GroupLabels(
                [(b, old[a]) for a, b in self.new_of.items()],
                {record.name: self._renewed(node) for node, record in old.items()},
            )
            self.groups_now = GroupLabels(
                [(b, new[b]) for b in self.new_of.values()],
                {record.name: node for node, record in new.items()},
            )

    def diff(self) -> GraphDiff:
        return GraphDiff(tuple(self._nodes()), tuple(self._attributes()))

    def _nodes(self) -> Iterator[NodeChange]:
        old, new = self.before.records, self.after.records
        kept = list(self.new_of.values())
        order = [self.new_of[node] for node in old if node in self.new_of]
        moved = set(kept) - longest_kept_order(order, kept)
        position = {node: i for i, node in enumerate(old)}
        removed = [node for node in old if node not in self.new_of]
        shown = 0
        for node, record in new.items():
            source = self.old_of.get(node)
            if source is None:
                yield NodeChange(("added",), None, node, None, record)
                continue
            # Removed nodes are shown where they stood: before the next node that is still there.
            while shown < len(removed) and position[removed[shown]] < position[source]:
                yield NodeChange(("removed",), removed[shown], None, old[removed[shown]], None)
                shown += 1
            aspects: tuple[Aspect, ...] = (
                *self._aspects(old[source], record),
                *(("moved",) if node in moved else ()),
            )
            if aspects:
                yield NodeChange(aspects, source, node, old[source], record)
        for node in removed[shown:]:
            yield NodeChange(("removed",), node, None, old[node], None)

    def _aspects(self, old: NodeRecord, new: NodeRecord) -> Iterator[Aspect]:
        if not self.has_new_objects and old.same_as(new):
            return
        if self._does(old, self.before) != self._does(new, self.after):
            yield "retargeted"
        read_before, read_now = [self._renewed(node) for node in inputs(old)], inputs(new)
        if read_before != read_now:
            yield "rewired"
        # The same nodes and literals in another arrangement are other arguments, too.
        is_rearranged = read_before == read_now and shape(old) != shape(new)
        if is_rearranged or literals(old) != literals(new):
            yield "edited"
        annotation_differs = self._annotation(old, self._renewed) != self._annotation(new, _same)
        if annotation_differs or old.kernel != new.kernel or not self._groups_are_same(old, new):
            yield "annotated"
        if self.is_of_one_graph and old.name != new.name:
            yield "renamed"

    def _does(self, record: NodeRecord, snapshot: Snapshot) -> Hashable:
        if self.is_of_one_graph or record.op != "call_module":
            return record.op, record.target
        return deed(record, snapshot)

    def _renewed(self, node: Node) -> Node:
        return self.new_of.get(node, node)

    def _groups_are_same(self, old: NodeRecord, new: NodeRecord) -> bool:
        if self.is_of_one_graph or old.groups is None or new.groups is None:
            return old.groups == new.groups
        return self.groups_before.of(old) == self.groups_now.of(new)

    def _annotation(self, record: NodeRecord, rename: Callable[[Node], Node]) -> tuple[Any, ...] | None:
        if record.annotation is None or not self.has_new_objects:
            return record.annotation

        def point(value: EdgeOrNode) -> EdgeOrNode:
            return rename(value) if isinstance(value, Node) else (rename(value[0]), rename(value[1]))

        inputs, output, sharing, annotated = record.annotation
        renamed = tuple((rename(node), map_points(spec, point)) for node, spec in inputs)
        return renamed, map_points(output, point), sharing, annotated

    def _attributes(self) -> Iterator[AttributeChange]:
        for source, target in self._changed_attributes():
            old, new = self.before.attributes[source], self.after.attributes[target]
            if old is not None and new is not None and old.graph is not None and new.graph is not None:
                inside = diff(old.graph, new.graph)
                if inside:
                    yield AttributeChange(target, "graph", inside)
            else:
                written = old is not None and new is not None and new.written_since(old)
                yield AttributeChange(target, "written" if written else "replaced")

    def _changed_attributes(self) -> Iterator[tuple[str, str]]:
        """The targets, before and after, of attributes that may hold something else now."""
        if self.is_of_one_graph:
            yield from ((target, target) for target in changed_attributes(self.before, self.after))
            return
        # Two models have tensors of their own, also where they are the same, and number their observers.
        pairs = ((self.before.records[old], self.after.records[new]) for old, new in self.new_of.items())
        targets = ((a.target, b.target) for a, b in pairs if a.op == b.op and _refers_to_one(a, b))
        for source, target in dict.fromkeys(targets):
            old, new = self.before.attributes[source], self.after.attributes[target]
            if old is not new and (old is None or new is None or old.graph or not new.equals(old)):
                yield source, target


def _refers_to_one(old: NodeRecord, new: NodeRecord) -> bool:
    return old.op == "call_module" or (old.op == "get_attr" and old.target == new.target)


def _same(node: Node) -> Node:
    return node
