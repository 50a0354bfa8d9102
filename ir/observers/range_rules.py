"""Range rules: from a histogram to the real range that quantization is to represent.

A rule is a function of the histogram, the number of integers to map to, and whether the scheme is symmetric;
it returns the smallest and the largest real value to represent. Rules see whole bins; a range that cuts
nothing off is that of the exact extremes.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import TypeAlias

import attrs
import torch
from torch import Tensor

from ...errors import SpecError, UnknownNameError
from .histogram import DyadicHistogram, widen_histogram

__all__ = [
    "RANGE_RULES",
    "Percentile",
    "RangeRule",
    "entropy_range",
    "find_range_rule",
    "min_max_range",
    "mse_range",
    "search_range",
]

RangeRule: TypeAlias = Callable[[DyadicHistogram, int, bool], tuple[float, float]]
"""``(histogram, levels, symmetric) -> (min, max)``; the histogram is not empty."""

# The search moves by quantiles of 1e-5, as PyTorch's does.
_QUANTILE_STEPS = 100_000
# A table of candidates times cells this large is what one thread of PyTorch computes without splitting it.
_BATCH_ELEMENTS = 1 << 15
# From 13 bits on, rounding is so fine that clipping is never worth it, and a table row is long.
_MAX_SEARCHED_LEVELS = 1 << 12
# Clipping ratios tried by the rules that shrink the range: 128/128, 127/128, …
_RATIOS = 128


def min_max_range(histogram: DyadicHistogram, levels: int, symmetric: bool) -> tuple[float, float]:
    """All values seen."""
    return histogram.min_val, histogram.max_val


@attrs.frozen
class Percentile:
    """The central ``percent`` of the values; each tail loses half of the rest, in whole bins.

    Raises:
        SpecError: ``percent`` not in (0, 100].
    """

    percent: float = 99.99

    def __attrs_post_init__(self) -> None:
        if not 0.0 < self.percent <= 100.0:
            raise SpecError(
                f"Percentile has percent={self.percent}", hint="give a number above 0, at most 100"
            )

    def __call__(self, histogram: DyadicHistogram, levels: int, symmetric: bool) -> tuple[float, float]:
        """The range; see the class."""
        cumulative = histogram.used.cumsum(0).tolist()
        total = cumulative[-1]
        tail = total * (100.0 - self.percent) / 200.0
        start = bisect.bisect_right(cumulative, tail)
        end = bisect.bisect_left(cumulative, total - tail)
        return histogram.range_of_bins(min(start, end), max(start, end))


def search_range(histogram: DyadicHistogram, levels: int, symmetric: bool) -> tuple[float, float]:
    """The greedy search of PyTorch's histogram observer for the least squared error.

    From the range of all bins, the end that has more bins within the next 1e-5 of the values gives them up,
    again and again until the error grows. The error takes values as spread evenly within their bins, the
    range as divided into ``levels`` equal cells, and each value as rounded to the centre of its cell (of the
    outermost, when it lies outside). Unlike PyTorch, which takes the first step whatever it costs, the error
    of the whole range is the one to beat, and ``levels`` is the number of integers in use, not the dtype's.
    The scheme plays no part, as there. The source is Caffe2's
    ``NormMinimization::NonlinearQuantizationParamsSearch``.
    """
    counts = histogram.used
    last = len(counts) - 1
    if last == 0 or levels > _MAX_SEARCHED_LEVELS:
        return histogram.min_val, histogram.max_val
    error_of = _SquaredError(counts, levels)
    best = (0, last)
    least = _errors_of_bins(error_of, [best])[0]
    candidates = _trimmed_bins(counts.cumsum(0).tolist())
    # Most searches end early: try few at first.
    batch = 16
    while chunk := list(itertools.islice(candidates, batch)):
        for candidate, error in zip(chunk, _errors_of_bins(error_of, chunk), strict=True):
            if error > least:
                return histogram.range_of_bins(*best)
            best, least = candidate, error
        batch = max(1, _BATCH_ELEMENTS // levels)
    return histogram.range_of_bins(*best)


def _trimmed_bins(cumulative: list[int]) -> Iterator[tuple[int, int]]:
    """The (first, last) bins that the search tries in turn, given the cumulated counts.

    The sequence does not depend on the errors, which only end it. Quantiles are exact fractions of integers.
    Steps that would change nothing are passed over by arithmetic.
    """
    start, end = 0, len(cumulative) - 1
    total = cumulative[-1]
    left = right = 0  # how many steps of 1e-5 each end has moved
    # Within one bin no step would change anything any more.
    while left + right < _QUANTILE_STEPS and start < end:
        at_left = -(-(left + 1) * total // _QUANTILE_STEPS)
        next_start = min(bisect.bisect_left(cumulative, at_left, start), end)
        at_right = (_QUANTILE_STEPS - right - 1) * total // _QUANTILE_STEPS
        next_end = max(bisect.bisect_right(cumulative, at_right, 0, end + 1) - 1, start)
        if next_start - start > end - next_end:
            start = next_start
            left += 1
        elif next_end < end:
            end = next_end
            right += 1
        else:
            # The first step at which the last bin lies beyond the quantile.
            right = max(right + 1, (total - cumulative[end]) * _QUANTILE_STEPS // total)
            continue
        yield start, end


def mse_range(histogram: DyadicHistogram, levels: int, symmetric: bool) -> tuple[float, float]:
    """The shrunken range with the least mean squared error, integers at its ends and evenly between them."""
    if levels > _MAX_SEARCHED_LEVELS:
        return histogram.min_val, histogram.max_val
    ranges = _shrunken_ranges(histogram, symmetric)
    bounds = torch.tensor(ranges, dtype=torch.float64) / math.ldexp(1.0, histogram.grid.exponent)
    low, high = (bounds - histogram.grid.first).unbind(1)
    errors = _SquaredError(histogram.used, levels)(low, (high - low) / (levels - 1))
    return ranges[int(errors.argmin())]


def entropy_range(histogram: DyadicHistogram, levels: int, symmetric: bool) -> tuple[float, float]:
    """The shrunken range that loses the least information (Migacz, 8-bit inference with TensorRT, GTC 2017).

    The loss is the Kullback-Leibler divergence from the counts in the range, with those outside added to its
    outermost bins, to the counts in the range as ``levels`` integers would tell them apart. Ranges of fewer
    bins than levels are not tried.
    """
    ranges = _shrunken_ranges(histogram, symmetric)
    wide = widen_histogram(histogram, *ranges[0])
    counts, grid = wide.used.to(torch.float64).cpu(), wide.grid
    best, least = ranges[0], math.inf
    for low, high in ranges:
        start, end = grid.bin_of(low), grid.bin_of(high)
        if end - start + 1 < levels:
            break
        divergence = _divergence(counts, start, end, levels)
        if divergence < least:
            best, least = (low, high), divergence
    return best


def _divergence(counts: Tensor, start: int, end: int, levels: int) -> float:
    inside = counts[start : end + 1]
    if not inside.any():
        return math.inf
    reference = inside.clone()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[end + 1 :].sum()
    level = torch.arange(len(inside)) * levels // len(inside)
    zeros = torch.zeros(levels, dtype=torch.float64)
    filled = zeros.index_add(0, level, (inside > 0).to(torch.float64))
    spread = zeros.index_add(0, level, inside) / filled.clamp(min=1.0)
    quantized = torch.where(inside > 0, spread[level], 0.0)
    kept = reference > 0
    p = reference[kept] / reference.sum()
    q = quantized[kept] / quantized.sum()
    return float((p * (p / q).log()).sum())


def _shrunken_ranges(histogram: DyadicHistogram, symmetric: bool) -> list[tuple[float, float]]:
    """The range of all values and 0, and fractions of it, widest first; symmetric if the scheme is."""
    low, high = min(histogram.min_val, 0.0), max(histogram.max_val, 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    return [(low * k / _RATIOS, high * k / _RATIOS) for k in range(_RATIOS, 0, -1)]


class _SquaredError:
    """The squared error of rounding the values of a histogram to evenly spaced levels, for many spacings.

    Lengths are in bins, from the start of the first one; values are spread evenly within their bins. With
    levels c_0 … c_m, d apart, and the thresholds p_k = c_k − d/2 between them, the sum of (x − c(x))² over
    the values telescopes to

        Σ (x − c_m)² − 2d · Σ_k G(p_k),    k = 1 … m,    G(p) = Σ max(p − x, 0),

    and G is piecewise quadratic: one look-up a threshold, however many bins there are.
    """

    def __init__(self, counts: Tensor, levels: int) -> None:
        self._counts = counts.to(torch.float64).cpu()
        self._bins = len(self._counts)
        zero = torch.zeros(1, dtype=torch.float64)
        self._below = torch.cat((zero, self._counts.cumsum(0)))
        self._integral = torch.cat((zero, (self._below[:-1] + self._counts / 2).cumsum(0)))
        centre = torch.arange(self._bins, dtype=torch.float64) + 0.5
        self._total = self._below[-1]
        self._first_moment = (self._counts * centre).sum()
        self._second_moment = (self._counts * (centre.square() + 1 / 12)).sum()
        self._steps = torch.arange(1, levels, dtype=torch.float64) - 0.5
        self.levels = levels

    def __call__(self, first_level: Tensor, spacing: Tensor) -> Tensor:
        """The errors, in bins², of each pair of the two float64 tensors of shape [n]; shape [n]."""
        last = first_level + (self.levels - 1) * spacing
        at_last = self._second_moment - 2 * last * self._first_moment + last.square() * self._total
        thresholds = torch.addcmul(first_level[:, None], spacing[:, None], self._steps)
        return at_last - 2 * spacing * self._shortfall(thresholds).sum(1)

    def _shortfall(self, p: Tensor) -> Tensor:
        inside = p.clamp(0.0, float(self._bins))
        bin_of = inside.to(torch.int32).clamp_(max=self._bins - 1)
        f = inside - bin_of
        shortfall = self._integral[bin_of] + f * (self._below[bin_of] + f * (self._counts[bin_of] / 2))
        return shortfall + (p - inside).clamp(min=0.0) * self._total


def _errors_of_bins(error_of: _SquaredError, candidates: list[tuple[int, int]]) -> list[float]:
    """The errors when each range of bins is divided into cells with the levels in their centres."""
    start, end = torch.tensor(candidates, dtype=torch.float64).unbind(1)
    cell = (end - start + 1) / error_of.levels
    return error_of(start + cell / 2, cell).tolist()


RANGE_RULES: dict[str, RangeRule] = {
    "search": search_range,
    "min-max": min_max_range,
    "percentile": Percentile(),
    "mse": mse_range,
    "entropy": entropy_range,
}
"""The rules that ``HistogramObserver(range_rule=...)`` knows by name."""


def find_range_rule(rule: str | RangeRule) -> RangeRule:
    """``rule``, or the one of that name.

    Raises:
        UnknownNameError: no rule has that name.
    """
    if not isinstance(rule, str):
        return rule
    if rule not in RANGE_RULES:
        near = get_close_matches(rule, RANGE_RULES)
        raise UnknownNameError(
            f"there is no range rule {rule!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"known rules: {', '.join(RANGE_RULES)}",
        )
    return RANGE_RULES[rule]
