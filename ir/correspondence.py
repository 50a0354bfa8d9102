"""Which node of one graph is which node of another, when they share neither nodes nor, perhaps, ids.

Two models that were quantized differently number their quantize nodes differently, and a graph from a file
has the names it was written with. So names count for little. From the surest sign to the weakest, and after
each from the nodes that are known to their neighbours:

1. it computes the same from the same inputs and attributes, or the same is computed from it;
2. it has the name of an attribute or input, or an id from when the two graphs were one;
3. it does the same in the same module and line of code, and nothing else does;
4. it calls the same operator next to known nodes, or in the same line of code;
5. it stands where the other stands, whatever the two call; or the order of nodes says so.

In the end neighbours vote: they may know better than what came first. Steps take time in nodes and edges.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Final, TypeAlias

import attrs
from torch.fx import Node

from .comparable_graph import ComparableGraph
from .snapshot import Snapshot
from .subsequences import longest_common_subsequence

__all__ = ["corresponding_nodes"]

_MOST_ROUNDS: Final = 4
"""Each round of votes mends what the one before made possible; more than a few are hardly ever needed."""

Key: TypeAlias = Callable[[ComparableGraph, Node], Hashable | None]
Keyed: TypeAlias = Iterable[tuple[Hashable | None, Node]]


def corresponding_nodes(before: Snapshot, after: Snapshot) -> dict[Node, Node]:
    """The nodes that are in both of two graphs: node before → node after."""
    pairs = _Pairs(ComparableGraph.of(before), ComparableGraph.of(after))
    _match_computations(pairs)
    _match_unique(pairs, ComparableGraph.name)
    _spread(pairs, ComparableGraph.exact)
    _match_ids(pairs)
    _spread(pairs, ComparableGraph.exact)
    _match_unique(pairs, ComparableGraph.exact_at_origin)
    _spread(pairs, ComparableGraph.exact)
    _spread(pairs, ComparableGraph.deed)
    _match_unique(pairs, ComparableGraph.deed_at_known_origin)
    _match_unique(pairs, ComparableGraph.name_at_known_origin)
    _spread(pairs, ComparableGraph.deed)
    _spread(pairs, ComparableGraph.kind_at_origin)
    _match_in_order(pairs, ComparableGraph.deed_at_origin)
    _spread(pairs, ComparableGraph.kind_at_origin)
    for _ in range(_MOST_ROUNDS):
        if not _vote(pairs):
            break
        _spread(pairs, ComparableGraph.deed)
        _spread(pairs, ComparableGraph.kind_at_origin)
    return pairs.new_of


@attrs.frozen(eq=False)
class _Pairs:
    """The two graphs, and the nodes found to be the same so far.

    Args:
        new_of: the partners of nodes of the old graph.
        old_of: the partners of nodes of the new graph.
        told: the ids of nodes that are told by them; with another id, it is another node.
    """

    old: ComparableGraph
    new: ComparableGraph
    new_of: dict[Node, Node] = attrs.field(factory=dict, init=False)
    old_of: dict[Node, Node] = attrs.field(factory=dict, init=False)
    told: dict[Node, int] = attrs.field(factory=dict, init=False)

    def left(self) -> tuple[list[Node], list[Node]]:
        """The nodes of both that have no partner so far."""
        old, new = self.old.inputs, self.new.inputs
        return [n for n in old if n not in self.new_of], [n for n in new if n not in self.old_of]

    def may_be_same(self, old: Node, new: Node) -> bool:
        """Whether the ids of two nodes do not say that they are different."""
        return old not in self.told or new not in self.told or self.told[old] == self.told[new]

    def add(self, old: Node, new: Node) -> bool:
        """Note that two nodes are the same, unless one of them is known to be another."""
        is_new = old not in self.new_of and new not in self.old_of and self.may_be_same(old, new)
        if is_new:
            self.new_of[old], self.old_of[new] = new, old
        return is_new


def _match_unique(pairs: _Pairs, key: Key) -> None:
    """Match the nodes that have a key to themselves."""
    old, new = pairs.left()
    _match_by_key(pairs, [(key(pairs.old, n), n) for n in old], [(key(pairs.new, n), n) for n in new])


def _match_by_key(pairs: _Pairs, ours: Keyed, theirs: Keyed) -> list[tuple[Node, Node]]:
    found = _by_key(ours)
    candidates = ((found.get(key), node) for key, node in _by_key(theirs).items())
    return [(a, b) for a, b in candidates if a is not None and b is not None and pairs.add(a, b)]


def _by_key(keyed: Keyed) -> dict[Hashable, Node | None]:
    """The node of each key; None of a key that several nodes have."""
    found: dict[Hashable, Node | None] = {}
    for key, node in keyed:
        if key is not None:
            found[key] = None if key in found else node
    return found


def _match_in_order(pairs: _Pairs, key: Key) -> None:
    """Match what is left as the longest common subsequence of keys."""
    old, new = pairs.left()
    ours, theirs = [key(pairs.old, node) for node in old], [key(pairs.new, node) for node in new]
    for i, j in longest_common_subsequence(ours, theirs):
        pairs.add(old[i], new[j])


def _match_computations(pairs: _Pairs) -> None:
    """Match what is computed in one way from inputs and attributes, then that from which outputs are."""
    before, after = pairs.old.snapshot.attributes, pairs.new.snapshot.attributes
    shared = frozenset(
        target
        for target, new in after.items()
        if (old := before.get(target)) is not None and new is not None and new.equals(old)
    )
    numbers: dict[Hashable, int] = {}
    from_above = {**_from_above(pairs.old, shared, numbers), **_from_above(pairs.new, shared, numbers)}
    _match_unique(pairs, lambda _, node: from_above[node])
    from_below = {**_from_below(pairs.old, numbers), **_from_below(pairs.new, numbers)}
    _match_unique(pairs, lambda _, node: from_below[node])


def _from_above(
    graph: ComparableGraph, shared: frozenset[str], numbers: dict[Hashable, int]
) -> dict[Node, int]:
    """A number for each node, the same for nodes that compute the same from the same.

    Args:
        graph: one of the two.
        shared: the attributes that hold the same in both.
        numbers: the numbers given so far.
    """
    found: dict[Node, int] = {}
    for node, sources in graph.inputs.items():
        op, target = graph.kind(node)
        is_own = op == "get_attr" and target not in shared
        does = node if is_own else (graph.exact(node), *(found.get(source, -1) for source in sources))
        found[node] = numbers.setdefault(does, len(numbers))
    return found


def _from_below(graph: ComparableGraph, numbers: dict[Hashable, int]) -> dict[Node, int]:
    """A number for each node, the same for nodes from which the same is computed in the same way.

    Which attribute is read does not count: another model has other weights, under other names perhaps.
    """
    found: dict[Node, int] = {}
    for node in reversed(graph.inputs):
        op, _ = graph.kind(node)
        readers = sorted((found.get(user, -1), position) for user, position in graph.users[node])
        does = ("read by", op if op == "get_attr" else graph.exact(node), *readers)
        found[node] = numbers.setdefault(does, len(numbers))
    return found


def _match_ids(pairs: _Pairs) -> None:
    """Match nodes by id, as far as the two graphs have one count of ids.

    Graphs made from one model have one until their passes make different nodes. So ids count below the first
    that both graphs gave, but to different nodes: known ones, or nodes of different kinds.
    """
    old, new = pairs.old.ids(), pairs.new.ids()
    given = min(max(old.values(), default=-1), max(new.values(), default=-1))
    known = ((old[a], new[b]) for a, b in pairs.new_of.items() if a in old and b in new)
    different = [min(a, b) for a, b in known if a != b and max(a, b) <= given]
    by_id = {identity: node for node, identity in old.items()}
    for node, identity in new.items():
        if identity in by_id and pairs.old.kind(by_id[identity]) != pairs.new.kind(node):
            different.append(identity)
    end = min(different, default=math.inf)
    pairs.told.update((node, identity) for node, identity in (old | new).items() if identity < end)
    _match_unique(pairs, lambda _, node: pairs.told.get(node))


def _spread(pairs: _Pairs, key: Key) -> None:
    """Match what is next to known nodes and has the same key: what they read, then what reads them.

    Who reads a node tells more about it than what it reads: a wrong guess there changes its readers.
    """
    old, new = pairs.old, pairs.new
    for with_users in (False, True):
        queue = list(pairs.new_of.items())
        for a, b in queue:
            if len(old.inputs[a]) == len(new.inputs[b]):
                for i, j in zip(old.inputs[a], new.inputs[b], strict=True):
                    if i not in pairs.new_of and key(old, i) == key(new, j) and pairs.add(i, j):
                        queue.append((i, j))
            if with_users:
                ours = [((key(old, u), at), u) for u, at in old.users[a] if u not in pairs.new_of]
                theirs = [((key(new, u), at), u) for u, at in new.users[b] if ours and u not in pairs.old_of]
                queue += _match_by_key(pairs, ours, theirs)


def _vote(pairs: _Pairs) -> bool:
    """Give nodes other partners, no less like them, where more neighbours speak for it.

    What a node computes may be computed elsewhere before: of ``tanh(tanh(x))`` without the first, ``tanh(x)``
    is what is left of the second, as the nodes that read it tell.

    Returns:
        Whether any node got another partner.
    """
    old, new, new_of, old_of = pairs.old, pairs.new, pairs.new_of, pairs.old_of
    readers: Counter[tuple[Node, Node]] = Counter()
    for a, b in new_of.items():
        if len(old.inputs[a]) == len(new.inputs[b]):
            readers.update(zip(old.inputs[a], new.inputs[b], strict=True))

    def judge(a: Node | None, b: Node | None) -> tuple[int, int]:
        """How much two nodes are alike, and how many neighbours they have in common."""
        if a is None or b is None:
            return 0, 0
        likeness = (old.deed(a) == new.deed(b)) + (old.shape(a) == new.shape(b))
        read = zip(old.inputs[a], new.inputs[b], strict=False)
        return likeness, readers[a, b] + sum(new_of.get(i) is j for i, j in read)

    changed = False
    for a, b in readers:
        there, here = new_of.get(a), old_of.get(b)
        if there is b or old.kind_at_origin(a) != new.kind_at_origin(b) or not pairs.may_be_same(a, b):
            continue
        likeness, votes = judge(a, b)
        (likeness_there, votes_there), (likeness_here, votes_here) = judge(a, there), judge(here, b)
        if votes > votes_there + votes_here and likeness >= max(likeness_there, likeness_here):
            if there is not None:
                del old_of[there]
            if here is not None:
                del new_of[here]
            new_of[a], old_of[b] = b, a
            changed = True
    return changed
