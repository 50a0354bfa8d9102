"""The common part of observers that gather a statistic: when to observe, and what comes of it."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import attrs
import torch
from torch import Tensor

from ...errors import NotCalibratedError, SpecError
from .base import ObserverBase
from .distributed import running_group
from .exact_buffers import dtypes_kept
from .extremes import check_observable
from .qparams import IntegerRange, qparams_of_range

__all__ = ["DEFAULT_EPS", "StatisticObserver"]

DEFAULT_EPS: float = torch.finfo(torch.float32).eps


@attrs.frozen
class _Sighting:
    """Which tensor was observed, and in which of its states."""

    tensor: weakref.ref[Tensor]
    data_ptr: int
    version: int
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor) -> _Sighting | None:
        # Inference tensors do not count their writes: whether they changed cannot be told.
        if x.is_inference():
            return None
        return cls(weakref.ref(x), x.data_ptr(), x._version, x.shape)

    def is_of(self, x: Tensor) -> bool:
        # The address alone would take a new tensor in recycled memory for the old one.
        return (
            self.tensor() is x
            and self.data_ptr == x.data_ptr()
            and self.version == x._version
            and self.shape == x.shape
        )


class StatisticObserver(ObserverBase):
    """An observer made of a statistic, kept in buffers, and a range read from it.

    Subclasses write :meth:`_observe`, :meth:`_range`, :meth:`_merge`, :meth:`reset` and :attr:`has_data`.

    Args:
        dtype: integer dtype quantized values are stored in.
        qscheme: affine or symmetric, per tensor or per channel as the subclass is.
        reduce_range: halve the integer range, for kernels whose accumulators saturate with all of it.
        quant_min: smallest quantized value; None means the smallest of ``dtype``.
        quant_max: largest quantized value; None means the largest of ``dtype``.
        eps: smallest scale.
        is_dynamic: the parameters are found at run time.

    ``ch_axis`` is None on per-tensor observers. A statistic keeps its dtypes whatever the model is converted
    to (``model.half()``), since it could not be merged or read exactly afterwards.

    Raises:
        SpecError: contradictory arguments.
    """

    ch_axis: int | None = None
    _qschemes: tuple[torch.qscheme, ...] = (torch.per_tensor_affine, torch.per_tensor_symmetric)

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
    ) -> None:
        super().__init__(dtype, is_dynamic)
        name = type(self).__name__
        if qscheme not in self._qschemes:
            raise SpecError(
                f"{name} was asked for {qscheme}",
                hint=f"it knows {' and '.join(map(str, self._qschemes))}",
            )
        if not torch.finfo(torch.float32).tiny <= eps < float("inf"):
            raise SpecError(
                f"{name} has eps={eps}", hint="eps is the smallest scale: a positive float32 number"
            )
        self._integers = IntegerRange.of(dtype, quant_min, quant_max, reduce_range)
        self.qscheme = qscheme
        self.reduce_range = reduce_range
        self.quant_min = self._integers.quant_min
        self.quant_max = self._integers.quant_max
        self.eps = eps
        self._sighting: _Sighting | None = None

    @abstractmethod
    def _observe(self, x: Tensor) -> None:
        """Add ``x`` (floating-point, no gradient) to the statistic; change nothing on an error.

        ``x`` is empty only in the forward of ``DistributedDataParallel``.
        """

    @abstractmethod
    def _range(self) -> tuple[Tensor, Tensor]:
        """The smallest and largest real value to represent, float32, of shape [] or [channels]."""

    @abstractmethod
    def _merge(self, other: Any) -> None:
        """Add the non-empty statistic of ``other``."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all data."""

    def forward(self, x: Tensor) -> Tensor:
        """Add ``x`` to the statistic; empty tensors do not count.

        In the forward of ``DistributedDataParallel`` what is added is the ``x`` of all ranks, on each of
        them.

        Args:
            x: tensor of any floating-point dtype and memory format.

        Returns:
            ``x`` itself.

        Raises:
            CalibrationDataError: NaN or infinity in ``x``, or ``x`` not floating-point.
        """
        if self.has_seen(x):
            return x
        check_observable(x)
        # Other ranks may have data, and wait for this one.
        if x.numel() == 0 and running_group() is None:
            return x
        if self.observe_once:
            self.reset()
        # Out of inference mode, whose tensors could not be loaded or moved afterwards.
        with torch.inference_mode(False), torch.no_grad():
            self._observe(x.detach())
        if self.observe_once:
            self._sighting = _Sighting.of(x)
        return x

    def has_seen(self, x: Tensor) -> bool:
        """Whether ``x`` is the tensor observed last under ``observe_once``, not written to since."""
        return self.observe_once and self._sighting is not None and self._sighting.is_of(x) and self.has_data

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32), of shape [1] per tensor and [channels] per channel.

        Raises:
            NotCalibratedError: no data were observed.
        """
        if not self.has_data:
            raise NotCalibratedError(
                f"{type(self).__name__} saw no data",
                hint="run representative inputs through the prepared model before converting it",
            )
        return qparams_of_range(*self._range(), self._integers, self.qscheme, self.eps)

    def merge(self, other: Self) -> None:
        """Add what ``other`` saw, as if this observer had seen it too.

        Raises:
            SpecError: ``other`` is of another class.
        """
        if type(other) is not type(self):
            raise SpecError(
                f"a {type(other).__name__} cannot be merged into a {type(self).__name__}",
                hint="merge observers of the same point only",
            )
        if other.has_data:
            self._merge(other)

    def extra_repr(self) -> str:
        """What distinguishes this observer from others of its class."""
        axis = "" if self.ch_axis is None else f", ch_axis={self.ch_axis}"
        return (
            f"dtype={self.dtype}, quant_min={self.quant_min}, quant_max={self.quant_max}, "
            f"qscheme={self.qscheme}{axis}, has_data={self.has_data}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with dtypes_kept(self):
            return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # Loading writes into the buffers, which copies of the graph share.
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.clone()
        super()._load_from_state_dict(*args, **kwargs)
        # What was loaded need not be the statistic of the tensor last seen.
        self._sighting = None

    def __getstate__(self) -> dict[str, Any]:
        # The sighting is about a tensor of this process; a copy looks once more.
        return {**self.__dict__, "_sighting": None}
