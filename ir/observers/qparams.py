"""From the range of a tensor to its scale and zero point."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from ...errors import SpecError, UnsupportedError
from ..specs import SYMMETRIC_QSCHEMES, dtype_range, storage_dtype

__all__ = ["IntegerRange", "qparams_of_range"]

_INTEGER_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32)
_UNSIGNED_DTYPES = (torch.uint8, torch.uint16)


@attrs.frozen
class IntegerRange:
    """The integers a tensor is quantized to.

    Args:
        dtype: the integer dtype they are stored in.
        quant_min: the smallest.
        quant_max: the largest.
        midpoint: the zero point of symmetric quantization to an unsigned dtype.
    """

    dtype: torch.dtype
    quant_min: int
    quant_max: int
    midpoint: int

    @property
    def levels(self) -> int:
        """How many integers there are."""
        return self.quant_max - self.quant_min + 1

    @classmethod
    def of(
        cls,
        dtype: torch.dtype,
        quant_min: int | None = None,
        quant_max: int | None = None,
        reduce_range: bool = False,
    ) -> IntegerRange:
        """The range that an observer's arguments ask for; without bounds, all of ``dtype``.

        ``reduce_range`` halves both bounds. As in PyTorch, the midpoint of a range is rounded up when the
        range is the dtype's own (128 for uint8) and down when it was given (127 for [0, 255]).

        Raises:
            UnsupportedError: a dtype that is not an integer one.
            SpecError: one bound without the other, bounds out of order, bounds that ``dtype`` cannot hold, or
                a range without 0.
        """
        dtype = storage_dtype(dtype)
        held = dtype_range(dtype)
        if held is None or dtype not in _INTEGER_DTYPES:
            raise UnsupportedError(
                f"an observer of ranges was asked for {dtype}",
                hint=f"use one of {', '.join(map(str, _INTEGER_DTYPES))}; PlaceholderObserver serves float16",
            )
        if (quant_min is None) != (quant_max is None):
            raise SpecError(
                f"an observer has quant_min={quant_min}, quant_max={quant_max}: one bound without the other",
                hint="give both bounds, or neither to use the whole range of the dtype",
            )
        low, high = held if quant_min is None or quant_max is None else (quant_min, quant_max)
        inside = held[0] <= low and high <= held[1]
        if reduce_range:
            low, high = low // 2, high // 2
        if not (inside and low <= 0 <= high and low < high):
            raise SpecError(
                f"an observer has the range [{low}, {high}] for {dtype}",
                hint=f"the range must lie in [{held[0]}, {held[1]}], contain 0 and more than it",
            )
        round_up = 1 if quant_min is None else 0
        return cls(dtype, low, high, (low + high + round_up) // 2)


def qparams_of_range(
    min_val: Tensor, max_val: Tensor, integers: IntegerRange, qscheme: torch.qscheme, eps: float
) -> tuple[Tensor, Tensor]:
    """The scale and zero point that map the real range [min_val, max_val] to integers.

    All schemes but the last widen it to contain 0.

    The formulas are those of PyTorch's observers, in float32 as there. Affine::

        scale = max((max - min) / (quant_max - quant_min), eps)
        zero_point = clamp(quant_min - round(min / scale), quant_min, quant_max)

    Symmetric: ``scale = max(max(-min, max) / ((quant_max - quant_min) / 2), eps)``; the zero point is 0 for
    signed dtypes and the midpoint of the range for unsigned ones.

    Affine with float parameters: as affine, of the range as it is; the zero point is a whole number in
    float32, which need not lie within the integers.

    Args:
        min_val: smallest real value, float32, finite, of shape [] or [channels].
        max_val: largest real value, likewise.
        integers: what to map to.
        qscheme: affine or symmetric; per tensor or per channel is a matter of the shapes.
        eps: smallest scale.

    Returns:
        Scale (float32) and zero point (int32, or float32), of shape [1] or [channels]. The scale is positive
        and finite; an int32 zero point lies within the integers, so that 0.0 is exactly representable.
    """
    low = torch.atleast_1d(min_val).clamp(max=0.0)
    high = torch.atleast_1d(max_val).clamp(min=0.0)
    steps = float(integers.quant_max - integers.quant_min)
    if qscheme in SYMMETRIC_QSCHEMES:
        scale = (torch.maximum(-low, high) / (steps / 2)).clamp(min=eps)
        middle = integers.midpoint if integers.dtype in _UNSIGNED_DTYPES else 0
        return scale, torch.full_like(scale, middle, dtype=torch.int32)
    if qscheme is torch.per_channel_affine_float_qparams:
        low, high = torch.atleast_1d(min_val), torch.atleast_1d(max_val)
        scale = ((high / 2 - low / 2) / (steps / 2)).clamp(min=eps)
        return scale, integers.quant_min - torch.round(low / scale)
    # Halves are exact, and their difference is finite where that of the extremes is not.
    scale = ((high / 2 - low / 2) / (steps / 2)).clamp(min=eps)
    # int64 until clamped: the range of int32 itself overflows int32 here.
    zero_point = integers.quant_min - torch.round(low / scale).to(torch.int64)
    return scale, zero_point.clamp(integers.quant_min, integers.quant_max).to(torch.int32)
