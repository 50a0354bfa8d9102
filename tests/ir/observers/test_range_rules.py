"""Range rules: the search against a plain loop and PyTorch's own, the others by answers known beforehand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.errors import SpecError, UnknownNameError
from lowbit.ir.observers.histogram import DyadicHistogram, empty_histogram, observe_values
from lowbit.ir.observers.range_rules import (
    RANGE_RULES,
    Percentile,
    _errors_of_bins,
    _SquaredError,
    _trimmed_bins,
    entropy_range,
    find_range_rule,
    min_max_range,
    mse_range,
    search_range,
)


def histogram_of(x: torch.Tensor, bins: int = 2048) -> DyadicHistogram:
    return observe_values(empty_histogram(bins), x)


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def slow_error(counts: list[int], start: int, end: int, levels: int) -> float:
    """∫ (x − centre of its cell)², one piece at a time: the error by its definition."""
    cell = (end - start + 1) / levels
    cuts = [start + k * cell for k in range(1, levels)]
    error = 0.0
    for k, count in enumerate(counts):
        if count == 0:
            continue
        pieces = [k, *(cut for cut in cuts if k < cut < k + 1), k + 1]
        for a, b in itertools.pairwise(pieces):
            level = min(max(math.floor(((a + b) / 2 - start) / cell), 0), levels - 1)
            centre = start + (level + 0.5) * cell
            error += count * ((b - centre) ** 3 - (a - centre) ** 3) / 3
    return error


def slow_candidates(counts: list[int]) -> list[tuple[int, int]]:
    """Every step of 1e-5 taken one by one, quantiles in exact integers."""
    cumulative, total = [], 0
    for count in counts:
        total += count
        cumulative.append(total)
    steps = 100_000
    start, end, left, right = 0, len(counts) - 1, 0, 0
    candidates = []
    while left + right < steps:
        low, high = start, end
        while low < end and cumulative[low] * steps < (left + 1) * total:
            low += 1
        while high > start and cumulative[high] * steps > (steps - right - 1) * total:
            high -= 1
        if low - start > end - high:
            moved, start, left = low != start, low, left + 1
        else:
            moved, end, right = high != end, high, right + 1
        if moved:
            candidates.append((start, end))
    return candidates


def slow_search(histogram: DyadicHistogram, levels: int) -> tuple[float, float]:
    counts = histogram.used.tolist()
    best = (0, len(counts) - 1)
    least = slow_error(counts, *best, levels)
    for candidate in slow_candidates(counts):
        error = slow_error(counts, *candidate, levels)
        if error > least:
            break
        best, least = candidate, error
    return histogram.range_of_bins(*best)


counts_lists = st.lists(
    st.one_of(st.just(0), st.integers(1, 9), st.integers(1, 10**7)), min_size=2, max_size=48
).filter(lambda counts: counts[0] > 0 and counts[-1] > 0)


@settings(max_examples=60, deadline=None)
@given(counts_lists)
def test_candidates_are_those_of_the_plain_loop(counts: list[int]) -> None:
    assert list(_trimmed_bins(torch.tensor(counts).cumsum(0).tolist())) == slow_candidates(counts)


@settings(max_examples=100, deadline=None)
@given(counts_lists, st.data())
def test_errors_are_those_of_the_definition(counts: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(counts) - 1))
    end = data.draw(st.integers(start, len(counts) - 1))
    levels = data.draw(st.sampled_from([2, 3, 16, 256]))
    (error,) = _errors_of_bins(_SquaredError(torch.tensor(counts), levels), [(start, end)])
    # The telescoped sum cancels: what is left is exact to 1e-15 of the second moment.
    moment = sum(count * (k + 1) ** 2 for k, count in enumerate(counts))
    assert error == pytest.approx(slow_error(counts, start, end, levels), rel=1e-9, abs=1e-13 * moment)


DISTRIBUTIONS: dict[str, torch.Tensor] = {
    "normal": normal(20_000),
    "relu": normal(20_000).relu(),
    "relu6-saturated": (8 * normal(20_000)).clamp(0, 6),
    "laplace-tails": normal(20_000) * normal(20_000, 1).abs() * 3,
    "outlier": torch.cat((normal(20_000), torch.tensor([300.0]))),
    "negative": -normal(20_000).abs() - 5,
    "constant": torch.full((100,), 3.0),
    "two values": torch.tensor([1.0, 5.0]).repeat(500),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("bins", "levels"), [(256, 16), (300, 128)])
def test_search_finds_what_the_plain_loop_finds(name: str, bins: int, levels: int) -> None:
    histogram = histogram_of(DISTRIBUTIONS[name], bins)
    assert search_range(histogram, levels, False) == slow_search(histogram, levels)


@pytest.mark.parametrize("name", [name for name in DISTRIBUTIONS if name != "constant"])
def test_search_agrees_with_pytorch_on_the_same_histogram(name: str) -> None:
    legacy = pytest.importorskip("torch.ao.quantization.observer")
    histogram = histogram_of(DISTRIBUTIONS[name])
    counts, grid = histogram.used, histogram.grid
    theirs = legacy.HistogramObserver(bins=len(counts), dtype=torch.uint8)
    theirs.histogram.copy_(counts.to(torch.float32))
    theirs.min_val.fill_(grid.edge(0))
    theirs.max_val.fill_(grid.edge(len(counts)))
    width = math.ldexp(1.0, grid.exponent)
    error_of = _SquaredError(counts, 256)
    candidates = list(_trimmed_bins(counts.cumsum(0).tolist()))[:40]
    for candidate, error in zip(candidates, _errors_of_bins(error_of, candidates), strict=True):
        # Theirs is a float32 sum over the bins.
        assert error * width**2 == pytest.approx(theirs._compute_quantization_error(*candidate), rel=2e-3)


def test_search_that_trims_nothing_gives_the_exact_extremes() -> None:
    x = torch.linspace(-1.2345, 2.3456, 500)
    assert search_range(histogram_of(x), 256, False) == (x.min().item(), x.max().item())


def test_search_cuts_off_a_lone_outlier_of_many_values() -> None:
    x = torch.cat((normal(1_000_000), torch.tensor([60.0])))
    low, high = search_range(histogram_of(x), 256, False)
    assert -5.0 < low < -3.0
    assert 3.0 < high < 5.0


def test_search_of_16_bits_keeps_all_values() -> None:
    x = torch.cat((normal(1000), torch.tensor([1000.0])))
    assert search_range(histogram_of(x), 1 << 16, False) == (x.min().item(), 1000.0)


def test_min_max_is_exact() -> None:
    assert min_max_range(histogram_of(torch.tensor([-0.3, 0.7])), 256, False) == (
        torch.tensor(-0.3).item(),
        torch.tensor(0.7).item(),
    )


def test_percentile_counts_whole_bins_from_both_ends() -> None:
    # 100 values, one in each bin of width 1.
    histogram = histogram_of(torch.arange(100, dtype=torch.float32), 100)
    assert Percentile(100.0)(histogram, 256, False) == (0.0, 99.0)
    assert Percentile(98.0)(histogram, 256, False) == (1.0, 99.0)
    assert Percentile(80.0)(histogram, 256, False) == (10.0, 90.0)
    # Half of the values are 0: the lower tail ends in their bin.
    skewed = histogram_of(torch.cat((torch.zeros(100), torch.arange(100, dtype=torch.float32))), 100)
    assert Percentile(80.0)(skewed, 256, False) == (0.0, 80.0)
    assert Percentile(1e-9)(histogram, 256, False) == (49.0, 51.0)
    with pytest.raises(SpecError, match="percent=0"):
        Percentile(0.0)


def test_mse_keeps_evenly_spread_values_and_clips_an_outlier_of_few_levels() -> None:
    even = histogram_of(torch.arange(2048, dtype=torch.float32))
    assert mse_range(even, 256, False) == (0.0, 2047.0)
    outlier = histogram_of(torch.cat((normal(100_000), torch.tensor([20.0]))))
    low, high = mse_range(outlier, 16, False)
    assert 3.0 < high < 10.0
    assert low == outlier.min_val * high / 20.0
    low, high = mse_range(outlier, 16, True)
    assert low == -high


@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_least_of_all_fractions_by_brute_force(symmetric: bool) -> None:
    x = torch.cat((normal(4000).double(), torch.tensor([9.0, 12.0], dtype=torch.float64)))
    histogram = histogram_of(x)

    def error(low: float, high: float) -> float:
        step = (high - low) / 15
        return float((((x - low) / step).round().clamp(0, 15) * step + low - x).square().sum())

    bound = max(-histogram.min_val, histogram.max_val)
    full = (-bound, bound) if symmetric else (histogram.min_val, histogram.max_val)
    ranges = [(full[0] * k / 128, full[1] * k / 128) for k in range(1, 129)]
    best = min(error(*candidate) for candidate in ranges)
    # The histogram knows values up to a bin of 1/128 only.
    assert error(*mse_range(histogram, 16, symmetric)) == pytest.approx(best, rel=0.01)


def test_entropy_keeps_what_levels_can_tell_apart_and_clips_a_thin_tail() -> None:
    # Every level covers bins of equal counts: nothing is lost, the divergence is exactly 0.
    even = histogram_of(torch.arange(1024, dtype=torch.float32), 1024)
    assert entropy_range(even, 256, False) == (0.0, 1023.0)
    # Fewer bins than levels: nothing can be told.
    few = histogram_of(torch.arange(100, dtype=torch.float32), 128)
    assert entropy_range(few, 256, False) == (0.0, 99.0)
    thin = histogram_of(torch.cat((normal(100_000), torch.tensor([20.0]))))
    low, high = entropy_range(thin, 16, True)
    assert low == -high
    assert 2.0 < high < 8.0


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("rule", RANGE_RULES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_rule_gives_a_range_within_the_values_and_zero(name: str, rule: str, symmetric: bool) -> None:
    histogram = histogram_of(DISTRIBUTIONS[name])
    low, high = RANGE_RULES[rule](histogram, 256, symmetric)
    bound = max(abs(histogram.min_val), abs(histogram.max_val))
    assert -bound <= low <= high <= bound
    if not symmetric:
        assert min(histogram.min_val, 0.0) <= low
        assert high <= max(histogram.max_val, 0.0)


def test_rules_have_names() -> None:
    def own(histogram: DyadicHistogram, levels: int, symmetric: bool) -> tuple[float, float]:
        return -1.0, 1.0

    lookup: Callable[[object], object] = find_range_rule  # type: ignore[assignment]  # str or rule
    assert lookup("search") is search_range
    assert lookup(own) is own
    with pytest.raises(UnknownNameError, match="did you mean 'entropy'"):
        find_range_rule("entropi")
    with pytest.raises(UnknownNameError, match="known rules: search, min-max"):
        find_range_rule("zzz")
