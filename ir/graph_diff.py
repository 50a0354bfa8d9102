"""What changed between two snapshots, as data and as text."""

from __future__ import annotations

import bisect

import attrs
from torch.fx import Node

from .snapshot import Snapshot, changed_attributes

__all__ = ["GraphDiff", "diff"]


@attrs.frozen
class GraphDiff:
    """What changed between two snapshots, aligned by node identity.

    A node that was not touched appears in none of the fields.
    """

    added: tuple[Node, ...]
    removed: tuple[Node, ...]
    changed: tuple[Node, ...]
    moved: tuple[Node, ...]
    attributes: tuple[str, ...]
    lines: tuple[str, ...]
    """As text: ``+`` added, ``-`` removed, ``-`` and ``+`` changed, ``>`` moved, ``@`` attributes. The diff
    of a nested graph is indented below its attribute."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.moved or self.attributes)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def stat(self) -> str:
        """One line of counts."""
        return (
            f"{len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} changed, "
            f"{len(self.moved)} moved, {len(self.attributes)} attributes"
        )


def diff(before: Snapshot, after: Snapshot) -> GraphDiff:
    """Compare two snapshots of the same graph."""
    old, new = before.records, after.records
    kept = [node for node in new if node in old]
    moved = set(kept) - _longest_kept_order([node for node in old if node in new], kept)
    changed = [node for node in kept if not old[node].same_as(new[node])]
    changed_set = set(changed)
    attributes = tuple(changed_attributes(before, after))

    lines: list[str] = []
    removed = iter([node for node in old if node not in new])
    position = {node: i for i, node in enumerate(old)}
    pending = next(removed, None)

    for node in new:
        if node in position:
            # Removed nodes are shown where they stood: before the next node that is still there.
            while pending is not None and position[pending] < position[node]:
                lines.append(f"- {old[pending].text(pending)}")
                pending = next(removed, None)
        if node not in old:
            lines.append(f"+ {new[node].text(node)}")
        elif node in changed_set:
            lines += [f"- {old[node].text(node)}", f"+ {new[node].text(node)}"]
        elif node in moved:
            lines.append(f"> {new[node].text(node)}")
    while pending is not None:
        lines.append(f"- {old[pending].text(pending)}")
        pending = next(removed, None)
    for target in attributes:
        lines += _attribute_lines(target, before, after)
    return GraphDiff(
        added=tuple(node for node in new if node not in old),
        removed=tuple(node for node in old if node not in new),
        changed=tuple(changed),
        moved=tuple(node for node in kept if node in moved),
        attributes=attributes,
        lines=tuple(lines),
    )


def _attribute_lines(target: str, before: Snapshot, after: Snapshot) -> list[str]:
    old, new = before.attributes[target], after.attributes[target]
    if old is not None and new is not None and old.graph is not None and new.graph is not None:
        nested = diff(old.graph, new.graph)
        return [f"@ graph {target}: {nested.stat}", *(f"    {line}" for line in nested.lines)]
    written = old is not None and new is not None and new.written_since(old)
    return [f"@ attribute {target} {'written into' if written else 'replaced'}"]


def _longest_kept_order(before: list[Node], after: list[Node]) -> set[Node]:
    """The largest set of nodes that stand in the same order in both (patience sorting, n log n)."""
    if before == after:
        return set(after)
    position = {node: i for i, node in enumerate(before)}
    tails: list[int] = []  # tails[k]: smallest last position of an increasing run of length k + 1
    ends: list[Node] = []
    previous: dict[Node, Node | None] = {}
    for node in after:
        k = bisect.bisect_left(tails, position[node])
        previous[node] = ends[k - 1] if k else None
        if k == len(tails):
            tails.append(position[node])
            ends.append(node)
        else:
            tails[k] = position[node]
            ends[k] = node
    kept: set[Node] = set()
    node = ends[-1] if ends else None
    while node is not None:
        kept.add(node)
        node = previous[node]
    return kept
