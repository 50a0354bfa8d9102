"""Disjoint sets of the integers below n."""

from __future__ import annotations

import attrs

__all__ = ["UnionFind"]


@attrs.frozen
class UnionFind:
    """Disjoint sets of ``0 … size - 1``; the representative of a set is its smallest member.

    That choice makes the outcome independent of the order of unions. With path halving, m operations take
    O(m log n) steps (Tarjan and van Leeuwen, "Worst-case analysis of set union algorithms", 1984), and in
    practice a small constant each.
    """

    _parent: list[int]

    @classmethod
    def of_size(cls, size: int) -> UnionFind:
        """``size`` sets of one member each."""
        return cls(list(range(size)))

    def find(self, member: int) -> int:
        """The smallest member of the set that ``member`` is in."""
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def union(self, a: int, b: int) -> None:
        """Join the sets of ``a`` and ``b``."""
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)
