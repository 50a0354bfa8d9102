from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from lowbit.ir.sharing.union_find import UnionFind


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))
    )
)
def test_sets_are_the_connected_components_under_their_smallest_member(case) -> None:
    size, pairs = case
    sets = UnionFind.of_size(size)
    component = list(range(size))
    for a, b in pairs:
        sets.union(a, b)
        merged = {component[a], component[b]}
        component = [min(merged) if c in merged else c for c in component]
    assert [sets.find(i) for i in range(size)] == component


class CountingList(list[int]):
    reads = 0

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  (no slices here)
        self.reads += 1
        return super().__getitem__(index)


def test_a_path_as_long_as_there_are_members_costs_little() -> None:
    n = 2**12
    parent = CountingList(range(n))
    sets = UnionFind(parent)
    for i in reversed(range(1, n)):
        sets.union(i, i - 1)
    assert all(sets.find(i) == 0 for i in reversed(range(n)))
    assert parent.reads < 6 * 12 * n  # without path halving, n² / 2
