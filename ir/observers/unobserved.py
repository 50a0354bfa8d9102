"""Observers that observe nothing: the parameters are known beforehand, found at run time, or not needed."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SpecError, UnsupportedError
from ..specs import dtype_range
from .base import ObserverBase
from .qparams import IntegerRange
from .statistic import DEFAULT_EPS

__all__ = ["FixedQParamsObserver", "PlaceholderObserver"]


class PlaceholderObserver(ObserverBase):
    """Marks a tensor for dynamic quantization (``is_dynamic=True``) or a cast (``dtype=torch.float16``).

    Args:
        dtype: the dtype the tensor is to have.
        quant_min: smallest quantized value; None means the smallest of an integer ``dtype``.
        quant_max: largest quantized value; None means the largest of an integer ``dtype``.
        qscheme: per-tensor scheme of dynamic quantization; None means affine.
        eps: smallest scale of dynamic quantization; None means float32's epsilon.
        is_dynamic: quantize with parameters found at run time.
    """

    ch_axis: int | None = None

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        eps: float | None = None,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        held = dtype_range(self.dtype)
        if held is not None:
            integers = IntegerRange.of(self.dtype, quant_min, quant_max)
            quant_min, quant_max = integers.quant_min, integers.quant_max
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.qscheme = torch.per_tensor_affine if qscheme is None else qscheme
        self.eps = DEFAULT_EPS if eps is None else eps

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Raise: there are no parameters before run time.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "a PlaceholderObserver has no scale and zero point",
            hint="use an observer with a statistic, or set is_dynamic=True to find them at run time",
        )

    def extra_repr(self) -> str:
        """What distinguishes this observer from others of its class."""
        return f"dtype={self.dtype}, is_dynamic={self.is_dynamic}"


class FixedQParamsObserver(ObserverBase):
    """Parameters known beforehand (those of a sigmoid's output, say).

    Args:
        scale: positive and finite.
        zero_point: within the range.
        dtype: integer dtype quantized values are stored in.
        qscheme: per-tensor scheme.
        quant_min: smallest quantized value; None means the smallest of ``dtype``.
        quant_max: largest quantized value; None means the largest of ``dtype``.
        is_dynamic: must be false; there for specs, which have the field.

    Raises:
        SpecError: a scale or zero point that cannot be, or ``is_dynamic``.
    """

    scale: Tensor
    zero_point: Tensor
    ch_axis: int | None = None

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        *,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
    ) -> None:
        if is_dynamic:
            raise SpecError(
                "fixed parameters were asked to be dynamic",
                hint="leave is_dynamic out, or use PlaceholderObserver to find them at run time",
            )
        super().__init__(dtype)
        integers = IntegerRange.of(self.dtype, quant_min, quant_max)
        low, high = integers.quant_min, integers.quant_max
        stored = torch.tensor([scale], dtype=torch.float32)
        if not (0.0 < stored.item() < float("inf") and low <= zero_point <= high):
            raise SpecError(
                f"fixed parameters are scale={scale}, zero_point={zero_point}",
                hint=f"the scale is a positive float32 number, the zero point lies in [{low}, {high}]",
            )
        self.qscheme = qscheme
        self.quant_min = low
        self.quant_max = high
        self.register_buffer("scale", stored)
        self.register_buffer("zero_point", torch.tensor([zero_point], dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The fixed scale (float32) and zero point (int32), both of shape [1]."""
        return self.scale, self.zero_point

    def extra_repr(self) -> str:
        """What distinguishes this observer from others of its class."""
        return f"scale={self.scale.item()}, zero_point={self.zero_point.item()}, dtype={self.dtype}"
