"""Observers of the smallest and largest value: running or averaged, per tensor or per channel."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from ...errors import CalibrationDataError, SpecError
from .extremes import finite_min_max
from .statistic import DEFAULT_EPS, StatisticObserver

__all__ = [
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannelMinMaxObserver",
]


class _ExtremesObserver(StatisticObserver):
    """Keeps ``min_val`` and ``max_val`` (float32, of shape [], or [channels] and empty before any data)."""

    min_val: Tensor
    max_val: Tensor

    def __init__(
        self,
        *,
        dtype: torch.dtype,
        qscheme: torch.qscheme,
        reduce_range: bool,
        quant_min: int | None,
        quant_max: int | None,
        eps: float,
        is_dynamic: bool,
        ch_axis: int | None = None,
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
        self.ch_axis = ch_axis
        shape = () if ch_axis is None else (0,)
        self.register_buffer("min_val", torch.full(shape, float("inf")))
        self.register_buffer("max_val", torch.full(shape, float("-inf")))

    @abstractmethod
    def _combine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The extremes after one more tensor, whose own are ``low`` and ``high``."""

    @property
    def has_data(self) -> bool:
        """Whether a non-empty tensor was observed."""
        return self.min_val.numel() > 0 and bool((self.min_val <= self.max_val).all())

    def reset(self) -> None:
        """Forget all data."""
        shape = () if self.ch_axis is None else (0,)
        self._store(self.min_val.new_full(shape, float("inf")), self.max_val.new_full(shape, float("-inf")))

    def _store(self, low: Tensor, high: Tensor) -> None:
        # Replaced, never written into: copies of the graph share the tensors.
        self.min_val, self.max_val = low.to(self.min_val.device), high.to(self.max_val.device)

    def _observe(self, x: Tensor) -> None:
        low, high = finite_min_max(x, self.ch_axis)
        self._check_channels(low)
        # Else no rank had data; see StatisticObserver._observe.
        if x.numel() or (low <= high).all():
            self._store(*self._combine(low, high))

    def _check_channels(self, low: Tensor) -> None:
        if self.min_val.numel() not in (0, low.numel()):
            raise CalibrationDataError(
                f"an observer with ch_axis={self.ch_axis} saw {low.numel()} channels after "
                f"{self.min_val.numel()}",
                hint="the channel axis must always have the same length: choose another ch_axis",
            )

    def _range(self) -> tuple[Tensor, Tensor]:
        return self.min_val, self.max_val

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The number of channels is part of the statistic.
        for name in ("min_val", "max_val"):
            loaded = state_dict.get(prefix + name)
            if self.ch_axis is not None and loaded is not None:
                setattr(self, name, getattr(self, name).new_empty(loaded.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _RunningObserver(_ExtremesObserver):
    def _combine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if self.min_val.numel() == 0:
            return low, high
        return torch.minimum(self.min_val, low), torch.maximum(self.max_val, high)

    def _merge(self, other: Self) -> None:
        self._check_channels(other.min_val)
        # A clone, since what is stored for the first time becomes the buffer.
        self._store(*self._combine(other.min_val.clone(), other.max_val.clone()))


class _AveragingObserver(_ExtremesObserver):
    """Exponential averages ``m ← m + c · (extreme − m)``; the first tensor sets them."""

    averaging_constant: float
    tensors_seen: Tensor

    def _average(self, averaging_constant: float) -> None:
        if not 0.0 < averaging_constant <= 1.0:
            raise SpecError(
                f"{type(self).__name__} has averaging_constant={averaging_constant}",
                hint="it is the weight of the newest tensor: above 0, at most 1",
            )
        if self.is_dynamic and averaging_constant != 1.0:
            raise SpecError(
                f"a dynamic {type(self).__name__} has averaging_constant={averaging_constant}",
                hint="dynamic parameters are those of one tensor: set averaging_constant=1",
            )
        self.averaging_constant = averaging_constant
        self.register_buffer("tensors_seen", torch.zeros((), dtype=torch.int64))

    def _combine(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        first = not self.tensors_seen
        self.tensors_seen = self.tensors_seen + 1
        if first:
            return low, high
        c = self.averaging_constant
        return self.min_val + c * (low - self.min_val), self.max_val + c * (high - self.max_val)

    def reset(self) -> None:
        """Forget all data."""
        super().reset()
        self.tensors_seen = torch.zeros_like(self.tensors_seen)

    def _merge(self, other: Self) -> None:
        """Two histories have no common order, so the averages are averaged, each weighing what it saw."""
        self._check_channels(other.min_val)
        if self.has_data:
            seen, seen_other = float(self.tensors_seen), float(other.tensors_seen)
            total = seen + seen_other
            self._store(
                (self.min_val * seen + other.min_val * seen_other) / total,
                (self.max_val * seen + other.max_val * seen_other) / total,
            )
        else:
            self._store(other.min_val.clone(), other.max_val.clone())
        self.tensors_seen = self.tensors_seen + other.tensors_seen


class MinMaxObserver(_RunningObserver):
    """The range of a tensor is that of all values seen.

    Arguments as :class:`~lowbit.ir.observers.statistic.StatisticObserver`; per-tensor schemes only.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        *,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = DEFAULT_EPS,
        is_dynamic: bool = False,
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


class MovingAverageMinMaxObserver(_AveragingObserver):
    """The range of a tensor is an exponential average of the ranges seen.

    Args:
        averaging_constant: the weight of the newest tensor, in (0, 1].

    Other arguments as :class:`~lowbit.ir.observers.statistic.StatisticObserver`; per-tensor schemes only.
    """

    def __init__(
        self,
        averaging_constant: float = 0.01,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        *,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = DEFAULT_EPS,
        is_dynamic: bool = False,
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
        self._average(averaging_constant)


class PerChannelMinMaxObserver(_RunningObserver):
    """The range of each channel is that of all its values seen.

    Args:
        ch_axis: the channel axis.

    Other arguments as :class:`~lowbit.ir.observers.statistic.StatisticObserver`; per-channel schemes only.
    """

    _qschemes = (
        torch.per_channel_affine,
        torch.per_channel_symmetric,
        torch.per_channel_affine_float_qparams,
    )

    def __init__(
        self,
        ch_axis: int = 0,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        reduce_range: bool = False,
        *,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = DEFAULT_EPS,
        is_dynamic: bool = False,
    ) -> None:
        _refuse_dynamic(is_dynamic)
        super().__init__(
            dtype=dtype,
            qscheme=qscheme,
            reduce_range=reduce_range,
            quant_min=quant_min,
            quant_max=quant_max,
            eps=eps,
            is_dynamic=is_dynamic,
            ch_axis=ch_axis,
        )


class MovingAveragePerChannelMinMaxObserver(_AveragingObserver):
    """The range of each channel is an exponential average of its ranges seen.

    Args:
        averaging_constant: the weight of the newest tensor, in (0, 1].
        ch_axis: the channel axis.

    Other arguments as :class:`~lowbit.ir.observers.statistic.StatisticObserver`; per-channel schemes only.
    """

    _qschemes = (torch.per_channel_affine, torch.per_channel_symmetric)

    def __init__(
        self,
        averaging_constant: float = 0.01,
        ch_axis: int = 0,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        reduce_range: bool = False,
        *,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = DEFAULT_EPS,
        is_dynamic: bool = False,
    ) -> None:
        _refuse_dynamic(is_dynamic)
        super().__init__(
            dtype=dtype,
            qscheme=qscheme,
            reduce_range=reduce_range,
            quant_min=quant_min,
            quant_max=quant_max,
            eps=eps,
            is_dynamic=is_dynamic,
            ch_axis=ch_axis,
        )
        self._average(averaging_constant)


def _refuse_dynamic(is_dynamic: bool) -> None:
    if is_dynamic:
        raise SpecError(
            "a per-channel observer was asked to be dynamic",
            hint="dynamic quantization has one scale a tensor: use a per-tensor observer",
        )
