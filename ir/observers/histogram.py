"""A histogram that depends on the values it counted and on nothing else.

The grid is dyadic: bins are 2^e wide and begin at multiples of 2^e, so that the bin of a value x is
floor(x · 2^-e), which float32 computes without rounding. e is the smallest exponent at which the window from
the smallest to the largest value fits the bins. Data outside make e grow, and then bins are added in pairs:
floor(floor(x · 2^-e) / 2) = floor(x · 2^-(e+1)). So the histograms of parts, merged in any order and any
grouping, are the histogram of the whole to the last bit.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from .distributed import sum_of_all_ranks
from .extremes import finite_min_max, flatten_dense

__all__ = [
    "DyadicHistogram",
    "Grid",
    "empty_histogram",
    "merge_histograms",
    "observe_values",
    "widen_histogram",
]

# 2^-e must be a float32: no bins narrower than the smallest normal number.
_MIN_EXPONENT = -126
# Bins narrower than float32's resolution at the largest value would separate nothing.
_FLOAT32_DIGITS = 24
# Elements counted at a time on CPU: what the cache holds. One thread of a Sapphire Rapids Xeon takes 1.4 ns
# an element of ReLU outputs and 1.0 of normal ones; int64 bin numbers take 1.7 to 2 times as long, and
# torch.histc 2 times.
_CHUNK = 1 << 16


@attrs.frozen
class Grid:
    """Where the bins lie: bin k covers [(first + k) · 2^exponent, (first + k + 1) · 2^exponent)."""

    exponent: int
    first: int

    @classmethod
    def covering(cls, min_val: float, max_val: float, bins: int) -> Grid:
        """The finest grid whose ``bins`` bins cover [min_val, max_val]; both are float32 numbers.

        A larger interval never has a finer grid, which is what makes merging exact.
        """
        span = (max_val - min_val) / bins
        exponent = max(
            _MIN_EXPONENT,
            math.frexp(max(-min_val, max_val))[1] - _FLOAT32_DIGITS,
            math.frexp(span)[1] - 2 if span > 0.0 else _MIN_EXPONENT,
        )
        while _index(max_val, exponent) - _index(min_val, exponent) >= bins:
            exponent += 1
        return cls(exponent, _index(min_val, exponent))

    def bin_of(self, value: float) -> int:
        """The number of the bin that ``value`` falls into."""
        return _index(value, self.exponent) - self.first

    def edge(self, k: int) -> float:
        """Where bin ``k`` begins."""
        return math.ldexp(self.first + k, self.exponent)


def _index(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


@attrs.frozen(eq=False)
class DyadicHistogram:
    """How many values fell into each bin of a dyadic grid, and their exact extremes.

    Args:
        min_val: the smallest value, +inf when there are none.
        max_val: the largest value, -inf when there are none.
        counts: int64 tensor of shape [bins].
    """

    min_val: float
    max_val: float
    counts: Tensor

    @property
    def is_empty(self) -> bool:
        """Whether no value was counted."""
        return self.min_val > self.max_val

    @property
    def grid(self) -> Grid:
        """The grid of a histogram that is not empty."""
        return Grid.covering(self.min_val, self.max_val, len(self.counts))

    @property
    def used(self) -> Tensor:
        """The counts from the bin of the smallest value (bin 0) to that of the largest."""
        return self.counts[: self.grid.bin_of(self.max_val) + 1]

    def range_of_bins(self, start: int, end: int) -> tuple[float, float]:
        """The interval that bins ``start`` to ``end`` (inclusive) cover, cut at the extremes."""
        grid = self.grid
        return max(grid.edge(start), self.min_val), min(grid.edge(end + 1), self.max_val)


def empty_histogram(bins: int) -> DyadicHistogram:
    """A histogram of no values."""
    return DyadicHistogram(math.inf, -math.inf, torch.zeros(bins, dtype=torch.int64))


def observe_values(histogram: DyadicHistogram, x: Tensor) -> DyadicHistogram:
    """``histogram`` with the values of ``x`` added (in a distributed forward, of the ``x`` of all ranks).

    Args:
        histogram: what was counted before; not written to.
        x: floating-point tensor on the device of the counts. float64 is rounded to float32.

    Raises:
        CalibrationDataError: NaN or infinity in ``x``.
    """
    values = flatten_dense(x)
    low, high = finite_min_max(x)
    if low > high:
        return histogram
    min_val, max_val = min(histogram.min_val, low.item()), max(histogram.max_val, high.item())
    bins = len(histogram.counts)
    grid = Grid.covering(min_val, max_val, bins)
    counts = _count(values.to(torch.float32), grid, bins)
    counts = _regridded(histogram, grid) + sum_of_all_ranks(counts)
    return DyadicHistogram(min_val, max_val, counts)


def merge_histograms(a: DyadicHistogram, b: DyadicHistogram) -> DyadicHistogram:
    """The histogram of all values of both; exact, associative and commutative.

    Args:
        a: a histogram.
        b: one with as many bins, on the same device.
    """
    if a.is_empty or b.is_empty:
        return b if a.is_empty else a
    min_val, max_val = min(a.min_val, b.min_val), max(a.max_val, b.max_val)
    grid = Grid.covering(min_val, max_val, len(a.counts))
    return DyadicHistogram(min_val, max_val, _regridded(a, grid) + _regridded(b, grid))


def widen_histogram(histogram: DyadicHistogram, low: float, high: float) -> DyadicHistogram:
    """The same counts, on the grid of a larger interval [low, high] of float32 numbers."""
    grid = Grid.covering(low, high, len(histogram.counts))
    return DyadicHistogram(low, high, _regridded(histogram, grid))


def _regridded(histogram: DyadicHistogram, grid: Grid) -> Tensor:
    """The counts of ``histogram`` on a grid that covers it."""
    if histogram.is_empty or histogram.grid == grid:
        return histogram.counts
    old, used = histogram.grid, histogram.used
    index = torch.arange(old.first, old.first + len(used), device=used.device)
    # Indices are below 2^25, so that a shift by 62 is as good as one by more, which int64 does not have.
    index = (index >> min(grid.exponent - old.exponent, 62)) - grid.first
    return torch.zeros_like(histogram.counts).index_add_(0, index, used)


def _count(values: Tensor, grid: Grid, bins: int) -> Tensor:
    """How many of ``values`` (float32, one dimension, covered by ``grid``) fall into each bin."""
    counts = torch.zeros(bins, dtype=torch.int64, device=values.device)
    if not len(values):
        return counts
    chunk = min(_CHUNK, len(values)) if values.device.type == "cpu" else len(values)
    scaled = torch.empty(chunk, dtype=torch.float32, device=values.device)
    index = torch.empty(chunk, dtype=torch.int32, device=values.device)
    scale = math.ldexp(1.0, -grid.exponent)
    for part in values.split(chunk):
        if len(part) < chunk:
            scaled, index = scaled[: len(part)], index[: len(part)]
        if grid.exponent > 0:
            # Scaled down at once, a tiny negative number would become -0.0 and leave bin -1 for bin 0.
            torch.floor(part, out=scaled).mul_(scale).floor_()
        else:
            torch.mul(part, scale, out=scaled).floor_()
        if grid.first:
            scaled.sub_(grid.first)
        counts += torch.bincount(index.copy_(scaled), minlength=bins)
    return counts
