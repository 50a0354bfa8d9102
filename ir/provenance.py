"""Who a node is: an identity that survives copies of the graph, and where new nodes come from.

Every node has an id from the first pass on. A rewrite that copies the metadata of a node copies its id with
it, and so says itself what became of what:

- a new node with the id of one that is gone is that node in another form, and keeps the id;
- a new node with the id of one that is still there was made from it, and gets an id of its own;
- a new node without an id gets one.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from .meta import ID_KEY, NEXT_ID_KEY, ORIGIN_KEY
from .snapshot import Snapshot

__all__ = ["identify_new_nodes", "identify_nodes"]


def identify_nodes(gm: GraphModule, snapshot: Snapshot) -> None:
    """Give an id to every node that has none, nested graphs included.

    Args:
        gm: a graph module before its first pass; of nodes with one id, the first keeps it.
        snapshot: that of ``gm`` now; its records get the ids too.
    """
    _Identification(gm, "").nodes_of(snapshot, None)


def identify_new_nodes(gm: GraphModule, before: Snapshot, after: Snapshot, pass_name: str) -> None:
    """Settle the ids of the nodes that a pass made, and write down where they come from.

    Args:
        gm: a graph module after a pass.
        before: its snapshot before the pass; nodes that are in it keep the ids they have there.
        after: its snapshot now; its records get the ids too.
        pass_name: the pass.
    """
    _Identification(gm, pass_name).nodes_of(after, before)


class _Identification:
    def __init__(self, gm: GraphModule, pass_name: str) -> None:
        self.gm = gm
        self.pass_name = pass_name

    def nodes_of(self, now: Snapshot, before: Snapshot | None) -> None:
        known = {} if before is None else before.records
        # Most passes touch few nodes of many, so this one line is what identity costs.
        unsettled = [
            node
            for node, record in now.records.items()
            if (old := known.get(node)) is None or old.id != record.id
        ]
        if unsettled:
            taken = {old.id for node, old in known.items() if node in now.records}
            for node in unsettled:
                old = known.get(node)
                identity = self._settle(node, taken) if old is None or old.id is None else old.id
                node.meta[ID_KEY] = identity
                now.records[node] = now.records[node].identified(identity)
        for target, attribute in now.attributes.items():
            if attribute is not None and attribute.graph is not None:
                earlier = None if before is None else before.attributes.get(target)
                self.nodes_of(attribute.graph, None if earlier is None else earlier.graph)

    def _settle(self, node: Node, taken: set[int | None]) -> int:
        claimed = node.meta.get(ID_KEY)
        if claimed is not None and claimed not in taken:
            taken.add(claimed)
            return claimed
        if self.pass_name:
            node.meta[ORIGIN_KEY] = (self.pass_name, claimed)
        identity: int = self.gm.meta.get(NEXT_ID_KEY, 0)
        self.gm.meta[NEXT_ID_KEY] = identity + 1
        taken.add(identity)
        return identity
