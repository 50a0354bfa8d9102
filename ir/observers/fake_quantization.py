"""The arithmetic of fake quantization: quantize and dequantize at once, with a gradient.

Every function returns, bit for bit, what the operators of the converted graph compute. The gradient is that
of the identity where a value is representable and zero where it is clipped: the straight-through estimator
(Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import CalibrationDataError, UnsupportedError
from .. import quantized_decomposed as qd
from .extremes import check_observable, not_finite
from .qparams import IntegerRange

__all__ = ["check_quantizable", "choose_qparams", "fake_cast", "fake_quantize", "quantize_dequantize"]

# Up to this many integers float32 holds each of them and their differences, so none need be made.
_EXACT_LEVELS = 1 << 16


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, integers: IntegerRange, ch_axis: int | None
) -> Tensor:
    """Quantize ``x`` and dequantize it.

    Args:
        x: float32, float16 or bfloat16.
        scale: float32, of shape [1] per tensor and [channels] per channel.
        zero_point: int32, likewise.
        integers: what to quantize to.
        ch_axis: the channel axis; None per tensor.

    Returns:
        A tensor like ``x``. NaN stays NaN.

    Raises:
        CalibrationDataError: ``x`` is not floating-point or has other channels than ``scale``.
        UnsupportedError: ``x`` is float64, which the quantize operators do not take.
    """
    check_quantizable(x, scale.numel(), ch_axis)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return quantize_dequantize(x, scale, zero_point, integers, ch_axis, need_mask=False)[0]
    return _FakeQuantize.apply(x, scale, zero_point, integers, ch_axis)


def check_quantizable(x: Tensor, channels: int, ch_axis: int | None) -> None:
    """Raise what :func:`fake_quantize` raises."""
    check_observable(x)
    if x.dtype is torch.float64:
        raise UnsupportedError(
            "a fake quantizer was handed a tensor of torch.float64, which quantize operators do not take",
            hint="train in float32 (model.float()), or switch it off: model.apply(disable_fake_quant)",
        )
    if ch_axis is not None and not (-x.dim() <= ch_axis < x.dim() and x.shape[ch_axis] == channels):
        raise CalibrationDataError(
            f"a fake quantizer of {channels} channels with ch_axis={ch_axis} was handed a tensor of shape "
            f"{list(x.shape)}",
            hint="the channel axis must always have the same length: choose another ch_axis",
        )


def fake_cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` rounded to ``dtype``, in its own dtype; the gradient passes as it is."""
    return _FakeCast.apply(x, dtype)


def choose_qparams(
    x: Tensor, integers: IntegerRange, qscheme: torch.qscheme, eps: float
) -> tuple[Tensor, Tensor]:
    """The scale (float32) and zero point (int32) that dynamic quantization finds for ``x``, of shape [1].

    Raises:
        CalibrationDataError: NaN or infinity in ``x``.
    """
    choose = qd.CHOOSE_QPARAMS_SYMMETRIC if qscheme == torch.per_tensor_symmetric else qd.CHOOSE_QPARAMS
    scale, zero_point = choose(x.detach(), integers.quant_min, integers.quant_max, eps, integers.dtype)
    if not scale.isfinite():
        raise not_finite(x)
    # The operator computes in float32 and widens the result.
    return scale.to(torch.float32), zero_point.to(torch.int32)


def quantize_dequantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    integers: IntegerRange,
    ch_axis: int | None,
    *,
    need_mask: bool,
) -> tuple[Tensor, Tensor | None]:
    """What :func:`fake_quantize` returns, and where ``x`` is not clipped (None without ``need_mask``)."""
    s = _along_channels(scale, x, ch_axis)
    z = _along_channels(zero_point, x, ch_axis).to(torch.float32)
    low, high = integers.quant_min, integers.quant_max
    steps = (x.to(torch.float32) * s.reciprocal()).round_().add_(z)
    if x.dtype is torch.float32 and integers.levels <= _EXACT_LEVELS:
        if not need_mask:
            return steps.clamp_(low, high).sub_(z).mul_(s), None
        clipped = steps.clamp(low, high)
        # Compared in place: comparisons that write bool are several times slower.
        mask = steps.eq_(clipped).to(torch.bool)
        return clipped.sub_(z).mul_(s), mask
    if ch_axis is None:
        arguments = (float(scale), int(zero_point), low, high, integers.dtype)
        value = qd.QUANTIZE_PER_TENSOR(x, *arguments)
        value = qd.DEQUANTIZE_PER_TENSOR(value, *arguments, out_dtype=x.dtype)
    else:
        arguments = (scale, zero_point, ch_axis, low, high, integers.dtype)
        value = qd.QUANTIZE_PER_CHANNEL(x, *arguments)
        value = qd.DEQUANTIZE_PER_CHANNEL(value, *arguments, out_dtype=x.dtype)
    value = torch.where(x.isnan(), x, value)
    return value, (steps.clamp(low, high) == steps) if need_mask else None


def _along_channels(qparam: Tensor, x: Tensor, ch_axis: int | None) -> Tensor:
    """``qparam`` as it broadcasts along the channel axis of ``x``; without dimensions per tensor."""
    if ch_axis is None:
        # Of shape [1] it would give a tensor without dimensions one.
        return qparam.view(())
    shape = [1] * x.dim()
    shape[ch_axis] = -1
    return qparam.view(shape)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        value, mask = quantize_dequantize(x, *arguments, need_mask=True)
        ctx.save_for_backward(mask)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (mask,) = ctx.saved_tensors
        # Products with bool are several times slower.
        return mask.to(gradients[0].dtype).mul_(gradients[0]), None, None, None, None


class _FakeCast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None
