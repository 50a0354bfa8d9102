"""The BackendConfigs that PyTorch has for its own backends."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from . import operators as ops
from .config import BackendConfig
from .dtype_config import DTypeConfig, DTypeWithConstraints
from .pattern_config import BackendPatternConfig

__all__ = [
    "get_executorch_backend_config",
    "get_fbgemm_backend_config",
    "get_native_backend_config",
    "get_onednn_backend_config",
    "get_qnnpack_backend_config",
    "get_x86_backend_config",
]

_WEIGHTED: Final = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float)
_DEFAULT: Final = DTypeConfig(torch.quint8, torch.quint8)
_DYNAMIC: Final = DTypeConfig(torch.quint8, torch.float, torch.qint8, torch.float, is_dynamic=True)
_DYNAMIC_HALF: Final = DTypeConfig(torch.float16, torch.float, torch.float16, torch.float, is_dynamic=True)
_FLOAT_WEIGHT: Final = DTypeConfig(torch.quint8, torch.quint8, torch.float, torch.float)
_WEIGHT_ONLY: Final = DTypeConfig(torch.float, torch.float, torch.quint8)
_SIGNED_WEIGHT_ONLY: Final = DTypeConfig(torch.float, torch.float, torch.qint8)

# The kernels of XNNPACK multiply by input scale · weight scale / output scale, which must not be too small.
_SIGNED: Final = DTypeWithConstraints(torch.qint8, scale_min_lower_bound=2**-12)
_SIGNED_WEIGHT: Final = DTypeWithConstraints(
    torch.qint8, quant_min_lower_bound=-127, quant_max_upper_bound=127, scale_min_lower_bound=2**-12
)
_SYMMETRIC_WEIGHTED: Final = DTypeConfig(_SIGNED, _SIGNED, _SIGNED_WEIGHT, torch.float)
_SYMMETRIC: Final = DTypeConfig(_SIGNED, _SIGNED)
_SYMMETRIC_DYNAMIC: Final = DTypeConfig(_SIGNED, torch.float, _SIGNED_WEIGHT, torch.float, is_dynamic=True)


def get_native_backend_config() -> BackendConfig:
    """The union of what FBGEMM and QNNPACK run in quint8; the config of ``prepare_fx`` if none is given."""
    return _unsigned(
        "native", linear=[_WEIGHTED, _DYNAMIC, _DYNAMIC_HALF], others=ops.layer_norms([_FLOAT_WEIGHT])
    )


def get_fbgemm_backend_config() -> BackendConfig:
    """FBGEMM, for servers."""
    return _unsigned("fbgemm", linear=[_WEIGHTED, _DYNAMIC, _DYNAMIC_HALF])


def get_x86_backend_config() -> BackendConfig:
    """X86: what FBGEMM has."""
    return _unsigned("x86", linear=[_WEIGHTED, _DYNAMIC, _DYNAMIC_HALF])


def get_onednn_backend_config() -> BackendConfig:
    """oneDNN: also convolutions that are added to something, and linears with leaky ReLU or tanh."""
    linear = [_WEIGHTED, _DYNAMIC]
    return _unsigned(
        "onednn",
        linear=linear,
        recurrent=[_DYNAMIC],
        embedding=_SIGNED_WEIGHT_ONLY,
        others=(
            *ops.convolutions_with_addition([_WEIGHTED]),
            *ops.linears_with_clamp(linear),
            *ops.layer_norms([_FLOAT_WEIGHT]),
        ),
    )


def _unsigned(
    name: str,
    *,
    linear: Sequence[DTypeConfig],
    recurrent: Sequence[DTypeConfig] = (_DYNAMIC, _DYNAMIC_HALF),
    embedding: DTypeConfig = _WEIGHT_ONLY,
    others: Iterable[BackendPatternConfig] = (),
) -> BackendConfig:
    """What the backends with unsigned activations have in common, and ``others``."""
    return BackendConfig(name).set_backend_pattern_configs(
        [
            *ops.convolutions([_WEIGHTED]),
            *ops.linears(linear),
            *ops.binary([_DEFAULT]),
            *ops.cat([_DEFAULT]),
            *ops.default_operators([_DEFAULT]),
            *ops.fixed_parameters([_DEFAULT]),
            *ops.sharing([_DEFAULT]),
            *ops.batch_norms([_DEFAULT]),
            *ops.recurrent(recurrent),
            *ops.embeddings([embedding]),
            *others,
        ]
    )


def get_qnnpack_backend_config() -> BackendConfig:
    """QNNPACK, for phones: quint8 activations, or qint8 ones within the bounds of XNNPACK."""
    either = [_SYMMETRIC, _DEFAULT]
    weighted = [_SYMMETRIC_WEIGHTED, _WEIGHTED]
    return BackendConfig("qnnpack").set_backend_pattern_configs(
        [
            *ops.convolutions(weighted),
            *ops.linears([*weighted, _DYNAMIC, _DYNAMIC_HALF]),
            *ops.binary(either),
            *ops.cat(either),
            *ops.default_operators(either),
            *ops.fixed_parameters(either),
            *ops.sharing(either),
            *ops.batch_norms(either),
            *ops.recurrent([_DYNAMIC, _DYNAMIC_HALF]),
            *ops.embeddings([_WEIGHT_ONLY]),
        ]
    )


def get_executorch_backend_config() -> BackendConfig:
    """What ExecuTorch takes: convolutions of two dimensions, linears, additions, differences, products."""
    either = [_SYMMETRIC, _DEFAULT]
    weighted = [_SYMMETRIC_WEIGHTED, _WEIGHTED]
    clamps = (nn.ELU, F.elu, nn.LeakyReLU, F.leaky_relu, nn.ConstantPad2d, F.pad)
    return BackendConfig("executorch").set_backend_pattern_configs(
        [
            *ops.convolutions_2d(weighted),
            *ops.linears([*weighted, _DYNAMIC, _SYMMETRIC_DYNAMIC, _DYNAMIC_HALF]),
            *ops.binary(either, (operator.add, operator.sub, operator.mul)),
            *ops.cat(either),
            *ops.sharing(either, *clamps),
            *ops.embeddings([_WEIGHT_ONLY]),
        ]
    )
