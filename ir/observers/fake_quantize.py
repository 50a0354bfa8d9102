"""Fake quantizers whose parameters an observer finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotCalibratedError, SpecError, UnsupportedError
from ..specs import CAST_DTYPES
from .fake_quantization import choose_qparams, fake_cast, fake_quantize
from .fake_quantize_base import FakeQuantizeBase
from .min_max import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
from .partial import accepted_keywords
from .statistic import DEFAULT_EPS
from .unobserved import FixedQParamsObserver

__all__ = [
    "FakeQuantize",
    "FixedQParamsFakeQuantize",
    "FusedMovingAvgObsFakeQuantize",
    "make_observer",
    "not_calibrated",
]


class FakeQuantize(FakeQuantizeBase):
    """Quantizes and dequantizes with the parameters that an observer finds.

    In training mode, with the observer enabled, each tensor is observed first; ``scale`` and ``zero_point``
    are then what the observer makes of all it saw, and stay so in eval mode. A dynamic one
    (``is_dynamic=True``) takes the parameters from each tensor itself, and one to ``torch.float16`` or
    ``torch.bfloat16`` casts there and back; neither observes.

    Args:
        observer: makes the observer, kept as ``activation_post_process``.
        quant_min: smallest quantized value; None means the smallest of the dtype.
        quant_max: largest quantized value; None means the largest of the dtype.
        is_dynamic: find the parameters at run time, from each tensor itself.
        **observer_kwargs: arguments of ``observer``. A ``dtype``, ``qscheme`` or ``ch_axis`` that it does not
            take is left out, as specs hand them to observers.

    Buffers: ``scale`` (float32) and ``zero_point`` (int32), of shape [1] per tensor, [channels] per channel
    and [0] before any data.

    Raises:
        SpecError: arguments that the observer refuses, an observer without range for a dtype that needs one.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        observer: Callable[..., nn.Module] = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        made = make_observer(observer, quant_min, quant_max, is_dynamic, observer_kwargs)
        super().__init__(**_attributes_of(made))
        self.activation_post_process = made
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        if not self._unobserved and getattr(made, "has_data", False):
            self._store_qparams()

    @property
    def _unobserved(self) -> bool:
        return self.is_dynamic or self.dtype in CAST_DTYPES

    @property
    def has_data(self) -> bool:
        """Whether there are parameters, or none are needed before run time."""
        return self._unobserved or self.scale.numel() > 0

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` if it is time to, then quantize and dequantize it.

        Args:
            x: float32, float16 or bfloat16 tensor (any floating-point dtype with fake quantization disabled).

        Returns:
            A tensor like ``x``; ``x`` itself if it is empty or fake quantization is disabled. NaN, which
            observing refuses, stays NaN otherwise.

        Raises:
            CalibrationDataError: NaN or infinity in what is observed; ``x`` not floating-point.
            NotCalibratedError: there are no parameters, and none may be found now.
            UnsupportedError: float64 with fake quantization enabled.
        """
        if self.training and self.observer_enabled and not self._unobserved:
            self.activation_post_process(x)
            # The data may also be another rank's.
            if x.numel() > 0 or getattr(self.activation_post_process, "has_data", True):
                self._store_qparams()
        if not self.fake_quant_enabled or x.numel() == 0:
            return x
        if self.dtype in CAST_DTYPES:
            return fake_cast(x, self.dtype)
        if self.is_dynamic:
            scale, zero_point = choose_qparams(x, self.integers, self.qscheme, self.eps)
        elif self.has_data:
            scale, zero_point = self.scale, self.zero_point
        else:
            raise not_calibrated(self)
        return fake_quantize(x, scale, zero_point, self.integers, self.ch_axis)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Copies of ``scale`` (float32) and ``zero_point`` (int32), which :meth:`forward` uses.

        Raises:
            NotCalibratedError: no data were observed.
            UnsupportedError: the parameters are found at run time, or there are none.
        """
        if self._unobserved:
            raise UnsupportedError(
                f"a {type(self).__name__} to {self.dtype} with is_dynamic={self.is_dynamic} has no scale "
                "before run time",
                hint="only static quantization to integers has parameters beforehand",
            )
        if not self.has_data:
            raise not_calibrated(self)
        return self.scale.clone(), self.zero_point.clone()

    def _store_qparams(self) -> None:
        # The same device as what is observed: a model is moved as a whole.
        calculate: Any = self.activation_post_process.calculate_qparams
        scale, zero_point = calculate()
        self.scale = scale.to(self.scale)
        self.zero_point = zero_point.to(self.zero_point)


class FusedMovingAvgObsFakeQuantize(FakeQuantize):
    """A :class:`FakeQuantize` of moving averages; the numbers are the same.

    The name is that of PyTorch's, which computes all in one kernel.

    Raises:
        SpecError: the observer keeps no moving average.
    """

    def __init__(
        self,
        observer: Callable[..., nn.Module] = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__(observer, quant_min, quant_max, is_dynamic, **observer_kwargs)
        averaging = (MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver)
        if not isinstance(self.activation_post_process, averaging):
            raise SpecError(
                f"FusedMovingAvgObsFakeQuantize has a {type(self.activation_post_process).__name__}",
                hint="it takes a moving average only: use FakeQuantize with other observers",
            )


class FixedQParamsFakeQuantize(FakeQuantize):
    """A :class:`FakeQuantize` with a scale and zero point known beforehand.

    Args:
        observer: makes a ``FixedQParamsObserver``.
        **observer_kwargs: arguments of ``observer``.

    Raises:
        SpecError: ``observer`` makes another observer.
    """

    def __init__(self, observer: Callable[..., nn.Module], **observer_kwargs: Any) -> None:
        super().__init__(observer, **observer_kwargs)
        if not isinstance(self.activation_post_process, FixedQParamsObserver):
            raise SpecError(
                f"FixedQParamsFakeQuantize has a {type(self.activation_post_process).__name__}",
                hint="pass FixedQParamsObserver.with_args(scale=..., zero_point=...)",
            )


def make_observer(
    observer: Callable[..., nn.Module],
    quant_min: int | None,
    quant_max: int | None,
    is_dynamic: bool,
    keywords: dict[str, Any],
) -> nn.Module:
    """The observer of a fake quantizer: what ``observer`` makes with those fields of a spec that it takes."""
    fields: dict[str, Any] = {"is_dynamic": True} if is_dynamic else {}
    if quant_min is not None or quant_max is not None:
        fields |= {"quant_min": quant_min, "quant_max": quant_max}
    for name in ("dtype", "qscheme", "ch_axis"):
        if name in keywords:
            fields[name] = keywords[name]
    others = {name: value for name, value in keywords.items() if name not in fields}
    made = observer(**accepted_keywords(observer, fields), **others)
    if not isinstance(made, nn.Module):
        raise SpecError(
            f"the observer constructor {observer!r} returned a {type(made).__name__}",
            hint="observer makes a torch.nn.Module",
        )
    return made


def not_calibrated(module: nn.Module) -> NotCalibratedError:
    """The error of a fake quantizer without parameters."""
    return NotCalibratedError(
        f"{type(module).__name__} saw no data",
        hint="train first, or calibrate(prepared, loader): in eval mode, and with disabled observers, "
        "fake quantizers do not observe",
    )


def _attributes_of(observer: Any) -> dict[str, Any]:
    names = ("dtype", "quant_min", "quant_max", "qscheme")
    return {
        **{name: getattr(observer, name) for name in names},
        "ch_axis": getattr(observer, "ch_axis", None),
        "eps": getattr(observer, "eps", DEFAULT_EPS),
        "is_dynamic": getattr(observer, "is_dynamic", False),
    }
