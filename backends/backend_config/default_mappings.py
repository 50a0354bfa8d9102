"""The default QConfigMappings of PyTorch's backends."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from . import observers as o
from .qconfig import (
    QConfig,
    default_quint8_weight_qconfig,
    default_reuse_input_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
)
from .qconfig_mapping import ObjectType, QConfigMapping

__all__ = ["TYPES_OF_DEFAULTS", "get_default_qat_qconfig_mapping", "get_default_qconfig_mapping"]

_TRANSPOSED: Final[tuple[ObjectType, ...]] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)
# What these return lies in [0, 1] or [-1, 1], whatever they read.
FROM_0_TO_1: Final[tuple[ObjectType, ...]] = (
    nn.Hardsigmoid,
    F.hardsigmoid,
    nn.Sigmoid,
    torch.sigmoid,
    nn.Softmax,
)
FROM_NEG1_TO_1: Final[tuple[ObjectType, ...]] = (nn.Tanh, torch.tanh)

TYPES_OF_DEFAULTS: Final[tuple[ObjectType, ...]] = (
    *("reshape", nn.LayerNorm, F.layer_norm, nn.PReLU),
    *_TRANSPOSED,
    *FROM_0_TO_1,
    *FROM_NEG1_TO_1,
)
"""The object types that default mappings set, whether a model has them or not."""


def get_default_qconfig_mapping(backend: str = "x86", version: int = 0) -> QConfigMapping:
    """The mapping for post-training quantization: :func:`get_default_qconfig`, and exceptions.

    Sigmoid, tanh and their like have the fixed parameters of what they return; reshapes keep those of their
    input; layer norms keep a float weight; ``fbgemm`` and ``x86`` have transposed convolutions per tensor.

    Args:
        backend: ``x86``, ``fbgemm``, ``qnnpack`` or ``onednn``.
        version: 0.

    Raises:
        UnknownNameError: another backend.
        UnsupportedError: another version.
    """
    return _mapping(
        backend,
        get_default_qconfig(backend, version),
        weight=o.default_weight_observer,
        from_0_to_1=o.default_fixed_qparams_range_0to1_observer,
        from_neg1_to_1=o.default_fixed_qparams_range_neg1to1_observer,
    )


def get_default_qat_qconfig_mapping(backend: str = "x86", version: int = 1) -> QConfigMapping:
    """The mapping for training: :func:`get_default_qat_qconfig`, and the same exceptions.

    Args:
        backend: ``x86``, ``fbgemm``, ``qnnpack`` or ``onednn``.
        version: 0 or 1.

    Raises:
        UnknownNameError: another backend.
        UnsupportedError: another version.
    """
    return _mapping(
        backend,
        get_default_qat_qconfig(backend, version),
        weight=o.default_weight_fake_quant,
        from_0_to_1=o.default_fixed_qparams_range_0to1_fake_quant,
        from_neg1_to_1=o.default_fixed_qparams_range_neg1to1_fake_quant,
    )


def _mapping(
    backend: str,
    qconfig: QConfig,
    *,
    weight: object,
    from_0_to_1: object,
    from_neg1_to_1: object,
) -> QConfigMapping:
    transposed = QConfig(qconfig.activation, weight) if backend in ("fbgemm", "x86") else qconfig
    layer_norm = QConfig(qconfig.activation, o.default_placeholder_observer)
    mapping = (
        QConfigMapping()
        .set_global(qconfig)
        .set_object_type("reshape", default_reuse_input_qconfig)
        .set_object_type(nn.LayerNorm, layer_norm)
        .set_object_type(F.layer_norm, layer_norm)
        .set_object_type(nn.PReLU, default_quint8_weight_qconfig)
    )
    for kinds, each in (
        (_TRANSPOSED, transposed),
        (FROM_0_TO_1, QConfig(from_0_to_1, weight)),
        (FROM_NEG1_TO_1, QConfig(from_neg1_to_1, weight)),
    ):
        for kind in kinds:
            mapping.set_object_type(kind, each)
    return mapping
