"""The dyadic histogram: exact counts that depend on the values alone."""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.errors import CalibrationDataError
from lowbit.ir.observers.histogram import (
    DyadicHistogram,
    Grid,
    empty_histogram,
    merge_histograms,
    observe_values,
)

TINY = 2.0**-149
FLOAT32_MAX = torch.finfo(torch.float32).max

# Scales far apart make grids grow by many powers of two at once.
finite = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-8.0, 8.0, width=32),
    st.integers(-40, 40).map(float),
    st.sampled_from([0.0, -0.0, TINY, -TINY, 2.0**126, -(2.0**126), FLOAT32_MAX, -FLOAT32_MAX]),
)
values = st.lists(finite, min_size=1, max_size=40)


def observed(parts: list[list[float]], bins: int = 16) -> DyadicHistogram:
    histogram = empty_histogram(bins)
    for part in parts:
        histogram = observe_values(histogram, torch.tensor(part))
    return histogram


def bits(histogram: DyadicHistogram) -> tuple[bytes, bytes, list[int]]:
    return (
        struct.pack("d", histogram.min_val),
        struct.pack("d", histogram.max_val),
        histogram.counts.tolist(),
    )


def counted_in_fractions(data: list[float], bins: int) -> list[int]:
    """The counts by the definition, in exact arithmetic."""
    exact = [Fraction(value) for value in data]
    low, high = min(exact), max(exact)
    largest = max(abs(low), abs(high))
    exponent = -126
    while Fraction(2) ** (exponent + 24) <= largest:
        exponent += 1
    while math.floor(high / Fraction(2) ** exponent) - math.floor(low / Fraction(2) ** exponent) >= bins:
        exponent += 1
    width = Fraction(2) ** exponent
    counts = [0] * bins
    for value in exact:
        counts[math.floor(value / width) - math.floor(low / width)] += 1
    return counts


@settings(max_examples=300, deadline=None)
@given(values, st.sampled_from([2, 3, 16, 64]))
def test_counts_are_those_of_exact_arithmetic(data: list[float], bins: int) -> None:
    histogram = observed([data], bins)
    assert histogram.counts.tolist() == counted_in_fractions(data, bins)
    assert (histogram.min_val, histogram.max_val) == (min(data), max(data))


@settings(max_examples=200, deadline=None)
@given(values, st.integers(1, 8), st.randoms(use_true_random=False), st.sampled_from([2, 16, 64]))
def test_neither_order_nor_batches_change_a_bit(
    data: list[float], batches: int, shuffle: random.Random, bins: int
) -> None:
    whole = bits(observed([data], bins))
    mixed = data.copy()
    shuffle.shuffle(mixed)
    parts = [part for k in range(batches) if (part := mixed[k::batches])]
    assert bits(observed(parts, bins)) == whole
    shards = [observed([part], bins) for part in parts]
    merged = empty_histogram(bins)
    for shard in shards:
        merged = merge_histograms(merged, shard)
    assert bits(merged) == whole


@settings(max_examples=200, deadline=None)
@given(values, values, values)
def test_merging_is_commutative_and_associative_with_the_empty_one_neutral(
    a: list[float], b: list[float], c: list[float]
) -> None:
    x, y, z = observed([a]), observed([b]), observed([c])
    assert bits(merge_histograms(x, y)) == bits(merge_histograms(y, x))
    left = merge_histograms(merge_histograms(x, y), z)
    right = merge_histograms(x, merge_histograms(y, z))
    assert bits(left) == bits(right) == bits(observed([a + b + c]))
    assert bits(merge_histograms(x, empty_histogram(16))) == bits(x)
    assert bits(merge_histograms(empty_histogram(16), x)) == bits(x)


@settings(max_examples=200, deadline=None)
@given(finite, finite, st.integers(2, 4096))
def test_the_grid_is_the_finest_that_fits(a: float, b: float, bins: int) -> None:
    low, high = min(a, b), max(a, b)
    grid = Grid.covering(low, high, bins)
    assert grid.edge(0) <= low
    assert high < grid.edge(bins)
    finer = Grid(grid.exponent - 1, math.floor(math.ldexp(low, 1 - grid.exponent)))
    fits = high < finer.edge(bins)
    floor = max(-126, math.frexp(max(abs(low), abs(high)))[1] - 24)
    assert grid.exponent >= floor
    assert grid.exponent == floor or not fits


def test_inputs_are_not_written_to() -> None:
    first = observed([[1.0, 2.0]])
    before = bits(first)
    observe_values(first, torch.tensor([1000.0]))
    merge_histograms(first, observed([[-1000.0]]))
    assert bits(first) == before


def test_known_counts() -> None:
    # [0, 16) in 16 bins of width 1.
    histogram = observed([[0.0, 0.5, 0.99, 1.0, 15.99]])
    assert histogram.grid == Grid(exponent=0, first=0)
    assert histogram.counts.tolist() == [3, 1] + [0] * 13 + [1]
    # 16 needs a 17th bin, so that pairs of bins are added.
    wider = observe_values(histogram, torch.tensor([16.0]))
    assert wider.grid == Grid(exponent=1, first=0)
    assert wider.counts.tolist() == [4] + [0] * 6 + [1, 1] + [0] * 7


def test_a_tiny_negative_number_does_not_become_zero_on_a_wide_grid() -> None:
    # -2^-149 · 2^-e rounds to -0.0 for every e > 0.
    histogram = observed([[-TINY, 0.0, 2.0**126]])
    assert histogram.counts.tolist()[:2] == [1, 1]


@pytest.mark.parametrize("value", [0.0, 3.7, -3.7, TINY, -TINY, 2.0**126, -FLOAT32_MAX])
def test_one_distinct_value_is_one_bin(value: float) -> None:
    histogram = observed([[value] * 5, [value] * 2])
    assert histogram.used.tolist() == [7]
    value = torch.tensor(value).item()
    assert (histogram.min_val, histogram.max_val) == (value, value)
    assert histogram.range_of_bins(0, 0) == (value, value)


def test_long_tensors_are_counted_in_pieces() -> None:
    x = torch.arange(300_001, dtype=torch.float32) % 7
    assert observed([[0.0]], 8).counts[0] == 1
    counts = observe_values(empty_histogram(8), x).counts.tolist()
    assert counts == [(300_001 - k + 6) // 7 for k in range(7)] + [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_dtypes_are_counted_as_float32(dtype: torch.dtype) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    as_is, as_float = (observe_values(empty_histogram(64), y) for y in (x, x.float()))
    assert bits(as_is) == bits(as_float)


def test_memory_format_does_not_matter() -> None:
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = bits(observe_values(empty_histogram(64), x))
    layouts = (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(1, 3),
        torch.cat((x, x), 3)[..., 7:],
    )
    for y in layouts:
        assert bits(observe_values(empty_histogram(64), y)) == expected
    expanded = torch.tensor([[1.0], [2.0]]).expand(2, 5)
    assert observe_values(empty_histogram(4), expanded).counts.sum() == 10


def test_thread_count_does_not_matter() -> None:
    x = torch.randn(400_001, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(bits(observe_values(empty_histogram(2048), x)))
            with torch.inference_mode():
                results.append(bits(observe_values(empty_histogram(2048), x.clone())))
    finally:
        torch.set_num_threads(threads)
    assert all(result == results[0] for result in results)
    assert sum(results[0][2]) == 400_001


def test_bad_values_are_refused_with_their_kind_and_number() -> None:
    x = torch.tensor([1.0, math.nan, math.inf, math.inf, -math.inf])
    with pytest.raises(CalibrationDataError, match=r"1 NaN, 2 \+inf, 1 -inf among the 5 values"):
        observe_values(empty_histogram(16), x)
    with pytest.raises(CalibrationDataError, match="1 beyond float32"):
        observe_values(empty_histogram(16), torch.tensor([1.0, 1e300], dtype=torch.float64))
