"""The observer of distributions."""

from __future__ import annotations

from typing import Any, Self

import attrs
import torch
from torch import Tensor

from ...errors import SpecError
from ..specs import SYMMETRIC_QSCHEMES
from .histogram import DyadicHistogram, merge_histograms, observe_values
from .range_rules import RangeRule, find_range_rule
from .statistic import DEFAULT_EPS, StatisticObserver

__all__ = ["HistogramObserver"]


@attrs.frozen(eq=False)
class _Found:
    """The range that was found, and in what: the search takes a while, and verification asks as well."""

    range: tuple[Tensor, Tensor]
    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]
    rule: RangeRule
    question: tuple[object, ...]


class HistogramObserver(StatisticObserver):
    """The range of a tensor is read from the histogram of its values.

    The statistic is exact: batch order and sharding change none of its bits. It is kept in the buffers
    ``min_val`` and ``max_val`` (float32, shape []) and ``histogram`` (int64, shape [bins]); see
    :class:`~lowbit.ir.observers.histogram.DyadicHistogram`.

    Args:
        bins: how many bins there are, at least 2; between half of them and all lie between the extremes.
        range_rule: what reads the range: a name of :data:`~lowbit.ir.observers.range_rules.RANGE_RULES` or a
            function. May be set later; it needs no new data.

    Other arguments as :class:`~lowbit.ir.observers.statistic.StatisticObserver`; per-tensor schemes only.
    """

    min_val: Tensor
    max_val: Tensor
    histogram: Tensor
    _found: _Found | None = None

    def __init__(
        self,
        bins: int = 2048,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        *,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = DEFAULT_EPS,
        is_dynamic: bool = False,
        range_rule: str | RangeRule = "search",
    ) -> None:
        super().__init__(
            dtype=dtype,
            qscheme=qscheme,
            reduce_range=reduce_range,
            quant_min=quant_min,
            quant_max=quant_max,
            eps=eps,
            is_dynamic=is_dynamic,
        )
        if is_dynamic:
            raise SpecError(
                "HistogramObserver was asked to be dynamic",
                hint="a histogram needs data beforehand: use PlaceholderObserver for dynamic quantization",
            )
        if bins < 2:
            raise SpecError(
                f"HistogramObserver has bins={bins}", hint="one bin cannot hold both signs: use 2048"
            )
        self.bins = bins
        self.range_rule = range_rule
        self.register_buffer("min_val", torch.tensor(float("inf")))
        self.register_buffer("max_val", torch.tensor(float("-inf")))
        self.register_buffer("histogram", torch.zeros(bins, dtype=torch.int64))

    @property
    def range_rule(self) -> RangeRule:
        """What reads the range from the histogram."""
        return self._range_rule

    @range_rule.setter
    def range_rule(self, rule: str | RangeRule) -> None:
        self._range_rule = find_range_rule(rule)

    @property
    def statistic(self) -> DyadicHistogram:
        """What was observed, as a value that shares the counts with this observer."""
        return DyadicHistogram(self.min_val.item(), self.max_val.item(), self.histogram)

    @property
    def has_data(self) -> bool:
        """Whether a non-empty tensor was observed."""
        return not self.statistic.is_empty

    def reset(self) -> None:
        """Forget all data."""
        # Replaced here and below, never written into: copies of the graph share the tensors.
        self.min_val = torch.full_like(self.min_val, float("inf"))
        self.max_val = torch.full_like(self.max_val, float("-inf"))
        self.histogram = torch.zeros_like(self.histogram)

    def _store(self, statistic: DyadicHistogram) -> None:
        self.min_val = torch.full_like(self.min_val, statistic.min_val)
        self.max_val = torch.full_like(self.max_val, statistic.max_val)
        self.histogram = statistic.counts.to(self.histogram)

    def _observe(self, x: Tensor) -> None:
        self._store(observe_values(self.statistic, x))

    def _merge(self, other: Self) -> None:
        if self.bins != other.bins:
            raise SpecError(
                f"a histogram of {other.bins} bins cannot be merged into one of {self.bins}",
                hint="merge observers of the same point only",
            )
        self._store(merge_histograms(self.statistic, other.statistic))

    def _range(self) -> tuple[Tensor, Tensor]:
        symmetric = self.qscheme in SYMMETRIC_QSCHEMES
        tensors = (self.min_val, self.max_val, self.histogram)
        versions = tuple(0 if t.is_inference() else t._version for t in tensors)
        levels = self._integers.levels
        known = self._found
        if (
            known is None
            or any(one is not other for one, other in zip(known.tensors, tensors, strict=True))
            or (known.versions, known.question) != (versions, (levels, symmetric))
            or known.rule is not self.range_rule
        ):
            low, high = self.range_rule(self.statistic, levels, symmetric)
            found = self.min_val.new_tensor(low), self.max_val.new_tensor(high)
            known = self._found = _Found(found, tensors, versions, self.range_rule, (levels, symmetric))
        return known.range

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_found"}
