"""Which node before is which node after.

Within one graph a node is the same while it is the same object, or while it carries the same id
(:mod:`.provenance`). Nodes of two graphs (a graph and its copy, two files) are told by what they do and where
(:mod:`.correspondence`).
"""

from __future__ import annotations

from torch.fx import Node

from .correspondence import corresponding_nodes
from .snapshot import NodeRecord, Snapshot

__all__ = ["align"]


def align(before: Snapshot, after: Snapshot) -> dict[Node, Node]:
    """The nodes that are in both: node before → node after, in the order of ``after``."""
    old, new = before.records, after.records
    kept = {node: node for node in new if node in old}
    if not kept:
        matched = corresponding_nodes(before, after)
    elif len(kept) == len(old) or len(kept) == len(new):
        return kept
    else:
        matched = kept | _same_ids(old, new)
    position = {node: i for i, node in enumerate(new)}
    return dict(sorted(matched.items(), key=lambda pair: position[pair[1]]))


def _same_ids(old: dict[Node, NodeRecord], new: dict[Node, NodeRecord]) -> dict[Node, Node]:
    """The nodes of one graph that are other objects now, by their ids."""
    ours = _by_id({node: record for node, record in old.items() if node not in new})
    theirs = _by_id({node: record for node, record in new.items() if node not in old})
    found = ((ours.get(identity), node) for identity, node in theirs.items())
    return {a: b for a, b in found if a is not None and b is not None}


def _by_id(records: dict[Node, NodeRecord]) -> dict[int, Node | None]:
    """The node of each id; None of an id that several nodes have."""
    found: dict[int, Node | None] = {}
    for node, record in records.items():
        if record.id is not None:
            found[record.id] = None if record.id in found else node
    return found
