"""Which node of one graph is which node of another.

Within one graph a node is the same while it is the same object, or while it carries the same id
(:mod:`.provenance`). Between two graphs (a graph and its copy, two files) nodes are matched by id, then by
name, then as a longest common subsequence of what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from torch.fx import Node

from .snapshot import NodeRecord, Snapshot
from .text.short import format_target

__all__ = ["align", "longest_common_subsequence"]

# Beyond this many differences the subsequence would take longer to find than it is worth.
_MOST_DIFFERENCES = 1000


def align(before: Snapshot, after: Snapshot) -> dict[Node, Node]:
    """The nodes that are in both: node before → node after, in the order of ``after``."""
    old, new = before.records, after.records
    matched = {node: node for node in new if node in old}
    of_one_graph = bool(matched)
    if len(matched) == len(old) or len(matched) == len(new):
        return matched
    _match_by_id(old, new, matched, trusted=of_one_graph)
    if not of_one_graph:
        _match_unique(old, new, matched, lambda _, record: (record.name, record.op))
        left_old = [node for node in old if node not in matched]
        taken = set(matched.values())
        left_new = [node for node in new if node not in taken]
        pairs = longest_common_subsequence(
            [_deed(old[node]) for node in left_old], [_deed(new[node]) for node in left_new]
        )
        matched.update((left_old[i], left_new[j]) for i, j in pairs)
        # What is left has changed its name and its target; the id is all there is.
        _match_by_id(old, new, matched, trusted=True)
    position = {node: i for i, node in enumerate(new)}
    return dict(sorted(matched.items(), key=lambda pair: position[pair[1]]))


def _deed(record: NodeRecord) -> Hashable:
    return record.op, record.target if isinstance(record.target, str) else format_target("", record.target)


def _match_by_id(
    old: dict[Node, NodeRecord], new: dict[Node, NodeRecord], matched: dict[Node, Node], *, trusted: bool
) -> None:
    """Match by id; where ids may be of different counts, only nodes that also agree in name or target."""
    found: dict[Node, Node] = {}
    _match_unique(old, new, found, lambda _, record: record.id, besides=matched)
    for before, after in found.items():
        a, b = old[before], new[after]
        if trusted or a.name == b.name or _deed(a) == _deed(b):
            matched[before] = after


def _match_unique(
    old: dict[Node, NodeRecord],
    new: dict[Node, NodeRecord],
    matched: dict[Node, Node],
    key: Callable[[Node, NodeRecord], Hashable | None],
    besides: dict[Node, Node] | None = None,
) -> None:
    """Match the nodes, not matched so far, that have a key to themselves."""
    known = matched if besides is None else besides
    taken = set(known.values())
    ours = _by_key(((n, r) for n, r in old.items() if n not in known), key)
    theirs = _by_key(((n, r) for n, r in new.items() if n not in taken), key)
    for value, node in theirs.items():
        other = ours.get(value)
        if node is not None and other is not None:
            matched[other] = node


def _by_key(
    records: Iterable[tuple[Node, NodeRecord]], key: Callable[[Node, NodeRecord], Hashable | None]
) -> dict[Hashable, Node | None]:
    found: dict[Hashable, Node | None] = {}
    for node, record in records:
        value = key(node, record)
        if value is not None:
            found[value] = None if value in found else node
    return found


def longest_common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    """The positions in ``a`` and ``b`` of their longest common subsequence.

    Myers' greedy algorithm ("An O(ND) difference algorithm and its variations", 1986), which takes time in
    the length times the number of differences. Of sequences with more than a thousand differences only the
    common ends are found.
    """
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    middle = _middle(a[start : len(a) - end], b[start : len(b) - end])
    return [
        *((i, i) for i in range(start)),
        *((start + i, start + j) for i, j in middle),
        *((len(a) - k, len(b) - k) for k in range(end, 0, -1)),
    ]


def _middle(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    furthest = {1: 0}
    history: list[dict[int, int]] = []
    for differences in range(min(len(a) + len(b), _MOST_DIFFERENCES) + 1):
        history.append(dict(furthest))
        for k in range(-differences, differences + 1, 2):
            down = k == -differences or (
                k != differences and furthest.get(k - 1, -1) < furthest.get(k + 1, -1)
            )
            x = furthest[k + 1] if down else furthest[k - 1] + 1
            while x < len(a) and x - k < len(b) and a[x] == b[x - k]:
                x += 1
            furthest[k] = x
            if x >= len(a) and x - k >= len(b):
                return _walk_back(history, len(a), len(b))
    return []


def _walk_back(history: list[dict[int, int]], x: int, y: int) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for differences in range(len(history) - 1, -1, -1):
        furthest = history[differences]
        k = x - y
        down = k == -differences or (k != differences and furthest.get(k - 1, -1) < furthest.get(k + 1, -1))
        previous_k = k + 1 if down else k - 1
        previous_x = furthest.get(previous_k, 0)
        previous_y = previous_x - previous_k
        while x > max(previous_x, 0) and y > max(previous_y, 0):
            x, y = x - 1, y - 1
            pairs.append((x, y))
        x, y = previous_x, previous_y
    return pairs[::-1]
