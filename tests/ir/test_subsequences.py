"""Common subsequences, against the quadratic rule."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
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


@settings(max_examples=200)
@given(st.permutations("abcdefgh"))
def test_as_many_items_as_can_be_keep_their_order(order: list[str]) -> None:
    kept = longest_kept_order("abcdefgh", order)
    assert [item for item in order if item in kept] == sorted(kept)
    assert len(kept) == length_of_longest(list("abcdefgh"), order)
