"""The observer whose parameters come from other observers (a bias's from activation and weight)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotCalibratedError, SpecError
from .base import ObserverBase
from .qparams import IntegerRange

__all__ = ["DerivedObserver", "all_have_data", "derive_qparams"]


class DerivedObserver(ObserverBase):
    """Computes its parameters from those of other observers; observes nothing itself.

    Args:
        sources: the observers to derive from. They belong to the graph, so they are not registered here, and
            copying the whole graph keeps them the same objects.
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
        super().__init__(dtype, is_dynamic)
        self._integers = IntegerRange.of(self.dtype, quant_min, quant_max)
        self.quant_min = self._integers.quant_min
        self.quant_max = self._integers.quant_max
        self.qscheme = qscheme
        self.ch_axis = ch_axis
        self.sources = tuple(sources)
        self.derive_qparams_fn = derive_qparams_fn

    @property
    def has_data(self) -> bool:
        """Whether all sources have data."""
        return all_have_data(self.sources)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """What the function returns, as a float32 scale and an int32 zero point of one dimension each.

        Raises:
            NotCalibratedError: a source saw no data.
            SpecError: the function's scale is not positive and finite, or its zero point outside the range.
        """
        return derive_qparams(self.sources, self.derive_qparams_fn, self._integers)

    def extra_repr(self) -> str:
        """What distinguishes this observer from others of its class."""
        return f"dtype={self.dtype}, sources={len(self.sources)}, qscheme={self.qscheme}"


def all_have_data(sources: Sequence[nn.Module]) -> bool:
    """Whether parameters can be derived from ``sources``; a user's observer that does not say has data."""
    return all(getattr(source, "has_data", True) for source in sources)


def derive_qparams(
    sources: Sequence[nn.Module],
    derive_qparams_fn: Callable[[list[Any]], tuple[Tensor, Tensor]],
    integers: IntegerRange,
) -> tuple[Tensor, Tensor]:
    """What the function makes of the sources: a float32 scale and an int32 zero point of one dimension each.

    Raises:
        NotCalibratedError: a source saw no data.
        SpecError: the function's scale is not positive and finite, or its zero point outside the range.
    """
    if not all_have_data(sources):
        raise NotCalibratedError(
            "derived parameters have a source that saw no data",
            hint="run representative inputs through the prepared model before converting it",
        )
    with torch.no_grad():
        scale, zero_point = derive_qparams_fn(list(sources))
    scale = torch.as_tensor(scale).to(torch.float32).reshape(-1)
    wide_zero_point = torch.as_tensor(zero_point).to(torch.int64).reshape(-1)
    if not (scale.isfinite() & (scale > 0)).all():
        raise SpecError(
            f"{derive_qparams_fn!r} derived the scale {scale.tolist()}",
            hint="a scale is a positive, finite number",
        )
    low, high = integers.quant_min, integers.quant_max
    if not ((wide_zero_point >= low) & (wide_zero_point <= high)).all():
        raise SpecError(
            f"{derive_qparams_fn!r} derived the zero point {wide_zero_point.tolist()}",
            hint=f"zero points lie in [{low}, {high}]",
        )
    return scale, wide_zero_point.to(torch.int32)
