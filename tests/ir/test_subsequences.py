"""Common subsequences, against the quadratic rule."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.ir import subsequences
from lowbit.ir.subsequences import longest_common_subsequence, longest_kept_order

words = st.lists(st.sampled_from("abc"), max_size=12)


def length_of_longest(a: list[str], b: list[str]) -> int:
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
    return best[-1][-1]


@settings(max_examples=300)
@given(words, words)
def test_the_subsequence_is_common_in_order_and_as_long_as_can_be(a: list[str], b: list[str]) -> None:
    pairs = longest_common_subsequence(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(pairs))
    assert len(pairs) == length_of_longest(a, b)


def test_many_differences_leave_no_less_in_common() -> None:
    """1,500 pairs changed places: of each pair one item is kept, however many there are."""
    before = list(range(3000))
    after = [i ^ 1 for i in before]
    pairs = longest_common_subsequence(before, after)
    assert all(before[i] == after[j] for i, j in pairs)
    assert len(pairs) == 1500


@settings(max_examples=100)
@given(words, words)
def test_beyond_the_limit_what_is_found_is_common_still(a: list[str], b: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subsequences, "_MOST_STEPS", 1)
        pairs = longest_common_subsequence(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(pairs))
    assert bool(pairs) is bool(set(a) & set(b))


@settings(max_examples=200)
@given(st.permutations("abcdefgh"))
def test_as_many_items_as_can_be_keep_their_order(order: list[str]) -> None:
    kept = longest_kept_order("abcdefgh", order)
    assert [item for item in order if item in kept] == sorted(kept)
    assert len(kept) == length_of_longest(list("abcdefgh"), order)
