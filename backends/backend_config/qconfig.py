"""QConfigs: how the activations and the weight of an operator are observed."""

from __future__ import annotations

from typing import Any, Final

import attrs
import torch
from torch import nn

from ...errors import SpecError, UnsupportedError
from ...ir.observers import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PlaceholderObserver,
)
from ...passes.registry import unknown_name
from . import observers as o

__all__ = [
    "QConfig",
    "default_activation_only_qconfig",
    "default_dynamic_qat_qconfig",
    "default_dynamic_qconfig",
    "default_per_channel_qconfig",
    "default_per_channel_symmetric_qnnpack_qat_qconfig",
    "default_per_channel_symmetric_qnnpack_qconfig",
    "default_qat_qconfig",
    "default_qat_qconfig_v2",
    "default_qconfig",
    "default_quint8_weight_qconfig",
    "default_reuse_input_qconfig",
    "default_symmetric_qnnpack_qat_qconfig",
    "default_symmetric_qnnpack_qconfig",
    "default_weight_only_qconfig",
    "float16_dynamic_qconfig",
    "float16_static_qconfig",
    "float_qparams_weight_only_qconfig",
    "get_default_qat_qconfig",
    "get_default_qconfig",
    "per_channel_dynamic_qconfig",
    "reuse_input_observer",
]


@attrs.frozen
class QConfig:
    """Constructors of observers (or of fake quantizers, for training) for an operator.

    ::

        QConfig(activation=MinMaxObserver.with_args(eps=2**-12), weight=default_weight_observer)

    Args:
        activation: for what the operator reads and returns; None or ``torch.nn.Identity`` leaves it float.
        weight: for its weight; likewise.

    Raises:
        SpecError: an observer itself in place of its class, or something that cannot be called.
    """

    activation: Any
    weight: Any

    def __attrs_post_init__(self) -> None:
        for name, constructor in (("activation", self.activation), ("weight", self.weight)):
            if isinstance(constructor, nn.Module) or not (constructor is None or callable(constructor)):
                raise SpecError(
                    f"QConfig has {constructor!r} as {name}",
                    hint="pass an observer class or its .with_args(…): each tensor has its own",
                )


def reuse_input_observer() -> nn.Module:
    """Stands in a QConfig for the parameters of the operator's input; never called.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        "reuse_input_observer observes nothing", hint="use it as the activation of a QConfig"
    )


default_qconfig = QConfig(o.default_observer, o.default_weight_observer)
default_per_channel_qconfig = QConfig(o.default_observer, o.default_per_channel_weight_observer)
default_quint8_weight_qconfig = QConfig(HistogramObserver, MinMaxObserver)
default_reuse_input_qconfig = QConfig(reuse_input_observer, None)

default_dynamic_qconfig = QConfig(o.default_dynamic_quant_observer, o.default_weight_observer)
per_channel_dynamic_qconfig = QConfig(o.default_dynamic_quant_observer, o.default_per_channel_weight_observer)

float_qparams_weight_only_qconfig = QConfig(o.default_placeholder_observer, o.default_float_qparams_observer)

_FLOAT16: Final = PlaceholderObserver.with_args(dtype=torch.float16)
float16_dynamic_qconfig = QConfig(_FLOAT16.with_args(is_dynamic=True), _FLOAT16)
float16_static_qconfig = QConfig(_FLOAT16, _FLOAT16)

default_qat_qconfig = QConfig(o.default_fake_quant, o.default_weight_fake_quant)
default_qat_qconfig_v2 = QConfig(o.default_fused_act_fake_quant, o.default_fused_wt_fake_quant)
default_dynamic_qat_qconfig = QConfig(o.default_dynamic_fake_quant, o.default_weight_fake_quant)
default_weight_only_qconfig = QConfig(nn.Identity, o.default_weight_fake_quant)
default_activation_only_qconfig = QConfig(o.default_fake_quant, nn.Identity)

_SIGNED_HISTOGRAM: Final = HistogramObserver.with_args(dtype=torch.qint8, eps=2**-12)
default_symmetric_qnnpack_qconfig = QConfig(_SIGNED_HISTOGRAM, o.weight_observer_range_neg_127_to_127)
default_per_channel_symmetric_qnnpack_qconfig = QConfig(
    _SIGNED_HISTOGRAM, o.per_channel_weight_observer_range_neg_127_to_127
)
_SIGNED_FAKE_QUANT: Final = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, quant_min=-128, quant_max=127, dtype=torch.qint8, eps=2**-12
)
default_symmetric_qnnpack_qat_qconfig = QConfig(
    _SIGNED_FAKE_QUANT, o.fused_wt_fake_quant_range_neg_127_to_127
)
default_per_channel_symmetric_qnnpack_qat_qconfig = QConfig(
    _SIGNED_FAKE_QUANT, o.fused_per_channel_wt_fake_quant_range_neg_127_to_127
)

_BACKENDS: Final = ("fbgemm", "onednn", "qnnpack", "x86")


def get_default_qconfig(backend: str = "x86", version: int = 0) -> QConfig:
    """The QConfig for post-training quantization: histograms of uint8 activations, int8 weights.

    Weights have a scale a channel, but one a tensor for ``qnnpack``. Activations have 7 bits for ``fbgemm``
    and ``x86``, whose kernels may saturate with 8.

    Args:
        backend: ``x86``, ``fbgemm``, ``qnnpack`` or ``onednn``.
        version: 0.

    Raises:
        UnknownNameError: another backend.
        UnsupportedError: another version.
    """
    _check(backend, version, (0,))
    return QConfig(
        HistogramObserver.with_args(reduce_range=_reduces_range(backend)),
        o.default_weight_observer if backend == "qnnpack" else o.default_per_channel_weight_observer,
    )


def get_default_qat_qconfig(backend: str = "x86", version: int = 1) -> QConfig:
    """The QConfig for quantization-aware training: moving averages, else as :func:`get_default_qconfig`.

    Args:
        backend: ``x86``, ``fbgemm``, ``qnnpack`` or ``onednn``.
        version: 0 or 1; they differ in the class of their fake quantizers, and give the same numbers.

    Raises:
        UnknownNameError: another backend.
        UnsupportedError: another version.
    """
    _check(backend, version, (0, 1))
    activation = (FusedMovingAvgObsFakeQuantize if version else FakeQuantize).with_args(
        observer=MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=255,
        reduce_range=_reduces_range(backend),
    )
    per_tensor, per_channel = (
        (o.default_fused_wt_fake_quant, o.default_fused_per_channel_wt_fake_quant)
        if version
        else (o.default_weight_fake_quant, o.default_per_channel_weight_fake_quant)
    )
    return QConfig(activation, per_tensor if backend == "qnnpack" else per_channel)


def _reduces_range(backend: str) -> bool:
    return backend in ("fbgemm", "x86")


def _check(backend: str, version: int, versions: tuple[int, ...]) -> None:
    if backend not in _BACKENDS:
        raise unknown_name("backend with default QConfigs", backend, _BACKENDS)
    if version not in versions:
        raise UnsupportedError(
            f"version {version} of the default QConfig was asked for",
            hint=f"versions: {', '.join(map(str, versions))}",
        )
