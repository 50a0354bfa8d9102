"""The fake quantizer that learns its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CalibrationDataError, SpecError
from ..specs import PER_CHANNEL_QSCHEMES, SYMMETRIC_QSCHEMES
from .fake_quantization import check_quantizable, fake_quantize, quantize_dequantize
from .fake_quantize import make_observer, not_calibrated
from .fake_quantize_base import FakeQuantizeBase
from .min_max import MovingAverageMinMaxObserver
from .statistic import StatisticObserver

__all__ = ["LearnableFakeQuantize"]


class LearnableFakeQuantize(FakeQuantizeBase):
    """Quantizes and dequantizes with a scale (and zero point) that the optimizer trains.

    The gradient of the scale is that of Esser et al., "Learned Step Size Quantization" (ICLR 2020): with
    x' the quantized and dequantized x,

        ∂x'/∂scale = (x' − x) / scale where x is not clipped, x' / scale where it is,

    times 1 / sqrt(N · Q_P), where N is the number of values that have the scale in common and Q_P the largest
    integer. That of the zero point of affine schemes, −scale where x is clipped and 0 elsewhere, is from
    Bhalgat et al., "LSQ+" (CVPR workshops 2020), and is scaled likewise.

    The parameters start from what the observer finds in the first training batch, or in all batches seen
    before without gradients (``calibrate``). They are set in place, so that optimizers and
    ``DistributedDataParallel`` may be made before. From then on the observer is disabled; enabling it makes
    the next training batch set them anew. The scale is kept at ``eps`` or above, the zero point within the
    integers; it is rounded where it is used.

    Args:
        observer: makes the observer of the first values.
        quant_min: smallest quantized value; None means the smallest of the dtype.
        quant_max: largest quantized value; None means the largest of the dtype.
        is_dynamic: must be false; there for specs, which have the field.
        channels: the number of channels, for per-channel schemes.
        **observer_kwargs: arguments of ``observer``, as for ``FakeQuantize``.

    ``scale`` is a float32 parameter of shape [1] or [channels]; ``zero_point`` likewise for affine schemes,
    and an int32 buffer for symmetric ones.

    Raises:
        SpecError: ``is_dynamic``, a per-channel scheme without ``channels``, arguments the observer refuses,
            an observer that finds no range.
    """

    scale: nn.Parameter
    zero_point: Tensor

    def __init__(
        self,
        observer: Callable[..., nn.Module] = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        channels: int | None = None,
        **observer_kwargs: Any,
    ) -> None:
        made = make_observer(observer, quant_min, quant_max, is_dynamic, observer_kwargs)
        if is_dynamic or not isinstance(made, StatisticObserver):
            raise SpecError(
                f"LearnableFakeQuantize has is_dynamic={is_dynamic} and a {type(made).__name__}",
                hint="what is learned is static and starts from a range: use MovingAverageMinMaxObserver",
            )
        per_channel = made.qscheme in PER_CHANNEL_QSCHEMES
        if per_channel and channels is None:
            raise SpecError(
                f"LearnableFakeQuantize has {made.qscheme} and no channels",
                hint="pass channels=, since parameters have their shape from the start",
            )
        super().__init__(
            dtype=made.dtype,
            quant_min=made.quant_min,
            quant_max=made.quant_max,
            qscheme=made.qscheme,
            ch_axis=made.ch_axis,
            eps=made.eps,
        )
        self.activation_post_process = made
        shape = [channels] if per_channel and channels is not None else [1]
        self.scale = nn.Parameter(torch.ones(shape))
        if made.qscheme in SYMMETRIC_QSCHEMES:
            self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
        else:
            self.zero_point = nn.Parameter(torch.zeros(shape))

    @property
    def has_data(self) -> bool:
        """Whether the parameters were set."""
        return self.activation_post_process.has_data

    def forward(self, x: Tensor) -> Tensor:
        """Set the parameters if it is time to, then quantize and dequantize ``x``.

        Arguments, result and errors as :meth:`FakeQuantize.forward`.
        """
        if self.training and self.observer_enabled:
            self._initialize(x)
        if not self.fake_quant_enabled or x.numel() == 0:
            return x
        check_quantizable(x, self.scale.numel(), self.ch_axis)
        scale, zero_point = self.calculate_qparams()
        if self.training:
            with torch.no_grad():
                # Else a scale that left for good could take as long to come back.
                self.scale.clamp_(min=self.eps)
        if not torch.is_grad_enabled():
            return fake_quantize(x, scale, zero_point, self.integers, self.ch_axis)
        return _LearnedQuantize.apply(
            x, self.scale, self.zero_point, scale, zero_point, self.integers, self.ch_axis
        )

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale (float32) and zero point (int32) that :meth:`forward` uses, [1] or [channels].

        Raises:
            NotCalibratedError: the parameters were not set.
        """
        if not self.has_data:
            raise not_calibrated(self)
        with torch.no_grad():
            zero_point = self.zero_point.round().clamp(self.integers.quant_min, self.integers.quant_max)
            return self.scale.clamp(min=self.eps), zero_point.to(torch.int32)

    def _initialize(self, x: Tensor) -> None:
        self.activation_post_process(x)
        if not self.activation_post_process.has_data:
            return
        if torch.is_grad_enabled():
            self.disable_observer()
        scale, zero_point = self.activation_post_process.calculate_qparams()
        if scale.shape != self.scale.shape:
            raise CalibrationDataError(
                f"LearnableFakeQuantize has channels={self.scale.numel()} and saw {scale.numel()} channels",
                hint="pass the length of the channel axis as channels=",
            )
        with torch.no_grad():
            self.scale.copy_(scale)
            if isinstance(self.zero_point, nn.Parameter):
                self.zero_point.copy_(zero_point)
            else:
                self.zero_point = zero_point.to(self.zero_point)


class _LearnedQuantize(torch.autograd.Function):
    """Takes the parameters twice: as the optimizer has them, for the gradient, and as they are used."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _scale: Tensor,
        _zero_point: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        *rest: Any,
    ) -> Tensor:
        value, mask = quantize_dequantize(x, scale, zero_point, *rest, need_mask=True)
        assert mask is not None
        integers, ctx.ch_axis = rest
        ctx.gradient_scale = (x.numel() / scale.numel() * max(integers.quant_max, 1)) ** -0.5
        ctx.save_for_backward(mask, value - torch.where(mask, x, 0.0), scale)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        mask, error, scale = ctx.saved_tensors
        (gradient,) = gradients
        # As in _FakeQuantize.
        passed = mask.to(gradient.dtype).mul_(gradient)
        of_scale = of_zero_point = None
        if ctx.needs_input_grad[1]:
            of_scale = _sum(gradient * error, ctx.ch_axis) / scale * ctx.gradient_scale
        if ctx.needs_input_grad[2]:
            of_zero_point = _sum(gradient - passed, ctx.ch_axis) * -scale * ctx.gradient_scale
        return passed, of_scale, of_zero_point, None, None, None, None


def _sum(x: Tensor, ch_axis: int | None) -> Tensor:
    """The sum over all that has a scale in common, float32, of shape [1] or [channels]."""
    channels = x.reshape(1, -1) if ch_axis is None else x.movedim(ch_axis, 0).flatten(1)
    return channels.to(torch.float32).sum(1)
