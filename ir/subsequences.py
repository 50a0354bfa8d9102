"""What two sequences have in common, in order."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Sequence
from typing import TypeVar

__all__ = ["longest_common_subsequence", "longest_kept_order"]

T = TypeVar("T", bound=Hashable)

# Beyond this many differences the subsequence would take longer to find than it is worth.
_MOST_DIFFERENCES = 1000


def longest_kept_order(before: Sequence[T], after: Sequence[T]) -> set[T]:
    """The largest set of items that stand in the same order in two orders of the same, distinct items.

    Patience sorting, in n log n.
    """
    if before == after:
        return set(after)
    position = {item: i for i, item in enumerate(before)}
    tails: list[int] = []  # tails[k]: smallest last position of an increasing run of length k + 1
    ends: list[T] = []
    previous: dict[T, T | None] = {}
    for item in after:
        k = bisect.bisect_left(tails, position[item])
        previous[item] = ends[k - 1] if k else None
        tails[k : k + 1] = [position[item]]
        ends[k : k + 1] = [item]
    kept: set[T] = set()
    item = ends[-1] if ends else None
    while item is not None:
        kept.add(item)
        item = previous[item]
    return kept


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
