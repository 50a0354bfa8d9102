"""What every fake quantizer is: a module that quantizes and dequantizes, and knows its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..specs import CAST_DTYPES, storage_dtype
from .exact_buffers import dtypes_kept
from .partial import ObserverConstructor
from .qparams import IntegerRange
from .statistic import DEFAULT_EPS

__all__ = ["FakeQuantizeBase"]


class FakeQuantizeBase(nn.Module, ABC):
    """Base class of fake quantizers; users subclass it to write their own.

    In training mode a fake quantizer first observes and then quantizes with what it found. In eval mode it
    never observes: an evaluation must not change the model. (PyTorch's own observe in both.)

    Args:
        dtype: the dtype quantized values are stored in.
        quant_min: smallest quantized value; None means the smallest of an integer dtype.
        quant_max: largest quantized value; None means the largest of an integer dtype.
        qscheme: per-tensor or per-channel, affine or symmetric.
        ch_axis: the channel axis of a per-channel scheme; None per tensor.
        eps: smallest scale.
        is_dynamic: the parameters are found at run time, from each tensor itself.

    The two switches are uint8 buffers of shape [1], so that checkpoints hold them. Buffers are replaced,
    never written into: copies of a model share them.
    """

    fake_quant_enabled: Tensor
    observer_enabled: Tensor

    def __init__(
        self,
        *,
        dtype: torch.dtype,
        quant_min: int | None,
        quant_max: int | None,
        qscheme: torch.qscheme,
        ch_axis: int | None = None,
        eps: float = DEFAULT_EPS,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__()
        self.dtype = storage_dtype(dtype)
        integers = None if self.dtype in CAST_DTYPES else IntegerRange.of(dtype, quant_min, quant_max)
        self._integers = integers
        self.quant_min = quant_min if integers is None else integers.quant_min
        self.quant_max = quant_max if integers is None else integers.quant_max
        self.qscheme = qscheme
        self.ch_axis = ch_axis
        self.eps = eps
        self.is_dynamic = is_dynamic
        self.register_buffer("fake_quant_enabled", _switch(True))
        self.register_buffer("observer_enabled", _switch(True))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``x`` quantized and dequantized, or ``x`` itself when that is switched off."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale (float32) and zero point (int32) that :meth:`forward` uses, as copies.

        They have the shape [1] per tensor and [channels] per channel.
        """

    @property
    @abstractmethod
    def has_data(self) -> bool:
        """Whether :meth:`calculate_qparams` has something to go by."""

    def enable_observer(self, enabled: bool = True) -> None:
        """Let training find new parameters, or keep those there are."""
        self.observer_enabled = _switch(enabled, self.observer_enabled.device)

    def disable_observer(self) -> None:
        """Keep the parameters there are."""
        self.enable_observer(False)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Quantize and dequantize, or return inputs as they are."""
        self.fake_quant_enabled = _switch(enabled, self.fake_quant_enabled.device)

    def disable_fake_quant(self) -> None:
        """Return inputs as they are."""
        self.enable_fake_quant(False)

    @property
    def integers(self) -> IntegerRange:
        """What is quantized to; casts have none."""
        assert self._integers is not None
        return self._integers

    @classmethod
    def with_args(cls, **keywords: Any) -> ObserverConstructor:
        """A constructor of this class with arguments bound; see :class:`ObserverConstructor`."""
        return ObserverConstructor(cls, keywords)

    def extra_repr(self) -> str:
        """What distinguishes this fake quantizer from others of its class."""
        axis = "" if self.ch_axis is None else f", ch_axis={self.ch_axis}"
        return (
            f"dtype={self.dtype}, quant_min={self.quant_min}, quant_max={self.quant_max}, "
            f"qscheme={self.qscheme}{axis}, is_dynamic={self.is_dynamic}, has_data={self.has_data}, "
            f"observer_enabled={bool(self.observer_enabled)}, "
            f"fake_quant_enabled={bool(self.fake_quant_enabled)}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with dtypes_kept(self):
            return super()._apply(fn, recurse)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The number of channels is known from the data only. Loading writes into buffers, so into new ones.
        for name, buffer in self._buffers.items():
            loaded = state_dict.get(prefix + name)
            if buffer is not None and loaded is not None:
                self._buffers[name] = buffer.new_empty(loaded.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _switch(on: bool, device: torch.device | None = None) -> Tensor:
    return torch.tensor([on], dtype=torch.uint8, device=device)
