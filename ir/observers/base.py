"""What every observer is: a module that returns its input unchanged and knows quantization parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..specs import storage_dtype
from .partial import ObserverConstructor

__all__ = ["ObserverBase", "ObserverOrFakeQuantize"]


@runtime_checkable
class ObserverOrFakeQuantize(Protocol):
    """What the function of a ``DerivedQuantizationSpec`` is handed for each point it derives from."""

    dtype: torch.dtype

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale and zero point found so far."""
        ...


class ObserverBase(nn.Module, ABC):
    """Base class of observers; users subclass it to write their own.

    Args:
        dtype: the dtype quantized values are stored in. The legacy names ``torch.quint8``, ``torch.qint8``
            and ``torch.qint32`` become ``torch.uint8``, ``torch.int8`` and ``torch.int32``.
        is_dynamic: the parameters are found at run time, from each tensor itself.

    ``observe_once`` may be set on observers of constants (the weights, in post-training quantization): the
    statistic is then that of the one tensor last seen, and is not computed again while that tensor stays the
    same. Observers that are no :class:`~lowbit.ir.observers.statistic.StatisticObserver` need not heed it.
    """

    observe_once: bool = False

    def __init__(self, dtype: torch.dtype, is_dynamic: bool = False) -> None:
        super().__init__()
        self.dtype = storage_dtype(dtype)
        self.is_dynamic = is_dynamic

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` and return it, the same object."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale (float32) and zero point (int32), of shape [1] per tensor and [channels] per channel."""

    @property
    def has_data(self) -> bool:
        """Whether :meth:`calculate_qparams` has something to go by."""
        return True

    @classmethod
    def with_args(cls, **keywords: Any) -> ObserverConstructor:
        """A constructor of this class with arguments bound; see :class:`ObserverConstructor`."""
        return ObserverConstructor(cls, keywords)
