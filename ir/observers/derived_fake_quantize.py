"""The fake quantizer whose parameters come from others (a bias's from activation and weight)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .derived import all_have_data, derive_qparams
from .fake_quantization import fake_quantize
from .fake_quantize import not_calibrated
from .fake_quantize_base import FakeQuantizeBase

__all__ = ["DerivedFakeQuantize"]


class DerivedFakeQuantize(FakeQuantizeBase):
    """Quantizes and dequantizes with parameters computed from those of other fake quantizers or observers.

    They are computed anew in each call. In training, a tensor that comes before the first data of a source
    stays as it is.

    Args:
        sources: what to derive from. They belong to the graph, so they are not registered here, and copying
            the whole graph keeps them the same objects.
        derive_qparams_fn: takes the list of sources, returns ``(scale, zero_point)``.
        dtype: integer dtype quantized values are stored in.
        quant_min: smallest quantized value; None means the smallest of ``dtype``.
        quant_max: largest quantized value; None means the largest of ``dtype``.
        qscheme: per-tensor or per-channel scheme.
        ch_axis: the channel axis of a per-channel scheme.
        is_dynamic: handed on to the conversion.
    """

    def __init__(
        self,
        sources: Sequence[nn.Module],
        derive_qparams_fn: Callable[[list[Any]], tuple[Tensor, Tensor]],
        dtype: torch.dtype = torch.uint8,
        *,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        ch_axis: int | None = None,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(
            dtype=dtype,
            quant_min=quant_min,
            quant_max=quant_max,
            qscheme=qscheme,
            ch_axis=ch_axis,
            is_dynamic=is_dynamic,
        )
        self.sources = tuple(sources)
        self.derive_qparams_fn = derive_qparams_fn

    @property
    def has_data(self) -> bool:
        """Whether all sources have data."""
        return all_have_data(self.sources)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x``; see :meth:`FakeQuantize.forward`.

        Raises:
            NotCalibratedError: in eval mode, a source has no data.
            SpecError: the function derived something that is no scale or zero point.
        """
        if not self.fake_quant_enabled or x.numel() == 0:
            return x
        if not self.has_data:
            if self.training:
                return x
            raise not_calibrated(self)
        scale, zero_point = self.calculate_qparams()
        return fake_quantize(x, scale, zero_point, self.integers, self.ch_axis)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """What the function returns, as a float32 scale and an int32 zero point of one dimension each.

        Raises:
            NotCalibratedError: a source saw no data.
            SpecError: the function's scale is not positive and finite, or its zero point outside the range.
        """
        return derive_qparams(self.sources, self.derive_qparams_fn, self.integers)
