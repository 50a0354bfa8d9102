"""What two sequences have in common, in order."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Mapping, Sequence
from typing import Final, TypeVar

import attrs
from attrs import astuple

__all__ = ["longest_common_subsequence", "longest_kept_order"]

T = TypeVar("T", bound=Hashable)

_MOST_STEPS: Final = 500
"""So many steps are made from each end towards the middle, so up to twice as many differences are found."""


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

    The linear-space algorithm of Myers ("An O(ND) difference algorithm and its variations", 1986): a point in
    the middle is found from both ends, and then what is before and behind it. Items that only one of the two
    has are left out first. What remains takes time in its length times the number of its differences.

    Where there are more than a thousand of these in one piece, it is cut at the point furthest from its ends
    that so many lead to: what is found is a common subsequence, and perhaps not the longest.
    """
    in_a, in_b = frozenset(a), frozenset(b)
    ours = [i for i, item in enumerate(a) if item in in_b]
    theirs = [j for j, item in enumerate(b) if item in in_a]
    # Numbers are compared faster than the texts and tuples that they stand for.
    numbers: dict[Hashable, int] = {}
    x = [numbers.setdefault(a[i], len(numbers)) for i in ours]
    y = [numbers.setdefault(b[j], len(numbers)) for j in theirs]
    return [(ours[i], theirs[j]) for i, j in _common(x, y)]


def _common(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    todo = [_Piece(0, len(a), 0, len(b))]
    while todo:
        left, right, top, bottom = astuple(todo.pop())
        while left < right and top < bottom and a[left] == b[top]:
            pairs.append((left, top))
            left, top = left + 1, top + 1
        while left < right and top < bottom and a[right - 1] == b[bottom - 1]:
            right, bottom = right - 1, bottom - 1
            pairs.append((right, bottom))
        if left < right and top < bottom:
            x, y = _middle(a, b, _Piece(left, right, top, bottom))
            todo += [_Piece(left, x, top, y), _Piece(x, right, y, bottom)]
    return sorted(pairs)


@attrs.frozen
class _Piece:
    """``a[left:right]`` and ``b[top:bottom]``."""

    left: int
    right: int
    top: int
    bottom: int


def _middle(a: list[int], b: list[int], piece: _Piece) -> tuple[int, int]:
    """A point that a shortest way from one end of ``piece`` to the other goes through.

    A way goes right over items of ``a``, down over those of ``b``, and for nothing along diagonals, where the
    two are equal. A diagonal is told by x − y. The ends of ``piece`` differ, so neither is the point.
    """
    left, right, top, bottom = astuple(piece)
    start, end = left - top, right - bottom
    first, last = left - bottom, right - top  # of all diagonals
    forward, backward = {start: left}, {end: right}
    is_odd = (start - end) % 2 == 1
    for step in range(1, _MOST_STEPS + 1):
        for k in _diagonals(start, step, first, last):
            right_of, below = forward.get(k - 1, left - 2) + 1, forward.get(k + 1, left - 2)
            x = max(right_of if right_of <= right else left - 1, below if below - k <= bottom else left - 1)
            if x < left:
                continue
            y = x - k
            while x < right and y < bottom and a[x] == b[y]:
                x, y = x + 1, y + 1
            forward[k] = x
            if is_odd and x >= backward.get(k, right + 1):
                return x, y
        for k in _diagonals(end, step, first, last):
            left_of, above = backward.get(k + 1, right + 2) - 1, backward.get(k - 1, right + 2)
            x = min(left_of if left_of >= left else right + 1, above if above - k >= top else right + 1)
            if x > right:
                continue
            y = x - k
            while x > left and y > top and a[x - 1] == b[y - 1]:
                x, y = x - 1, y - 1
            backward[k] = x
            if not is_odd and x <= forward.get(k, left - 1):
                return x, y
    return _furthest(piece, forward, backward)


def _diagonals(middle: int, step: int, first: int, last: int) -> range:
    """Those that a way may be on after ``step`` steps from one on the diagonal ``middle``."""
    low, high = middle - step, middle + step
    low += (max(0, first - low) + 1) // 2 * 2
    return range(low, min(high, last) + 1, 2)


def _furthest(piece: _Piece, forward: Mapping[int, int], backward: Mapping[int, int]) -> tuple[int, int]:
    left, right, top, bottom = astuple(piece)
    ways = [(x - left + x - k - top, x, x - k) for k, x in forward.items()]
    ways += [(right - x + bottom - (x - k), x, x - k) for k, x in backward.items()]
    _, x, y = max(ways)
    return x, y
