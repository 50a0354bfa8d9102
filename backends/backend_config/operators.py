"""The patterns that PyTorch's backends have in common, as configs."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from .dtype_config import DTypeConfig, DTypeWithConstraints
from .pattern_config import BackendPatternConfig, MatchAllNode, ObservationType

__all__ = [
    "batch_norms",
    "binary",
    "cat",
    "convolutions",
    "convolutions_2d",
    "convolutions_with_addition",
    "default_operators",
    "embeddings",
    "fixed_parameters",
    "layer_norms",
    "linears",
    "linears_with_clamp",
    "recurrent",
    "sharing",
]

Configs = Iterator[BackendPatternConfig]

_RELUS: Final = (nn.ReLU, F.relu)
_SHARED: Final = ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT


def _configs(
    patterns: Iterable[Any],
    dtype_configs: Sequence[DTypeConfig],
    observation_type: ObservationType = ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT,
) -> Configs:
    for pattern in patterns:
        config = BackendPatternConfig(pattern).set_observation_type(observation_type)
        yield config.set_dtype_configs(dtype_configs)


def linears(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Linear, with ReLU behind it, or BatchNorm."""
    relus = [(linear, relu) for linear in (nn.Linear, F.linear) for relu in _RELUS]
    yield from _configs(
        [nn.Linear, F.linear, *relus, (nn.Linear, nn.BatchNorm1d)],
        dtype_configs,
    )


def linears_with_clamp(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Linear with leaky ReLU or tanh behind it."""
    pairs = itertools.product((nn.Linear, F.linear), (nn.LeakyReLU, F.leaky_relu, nn.Tanh, torch.tanh))
    yield from _configs([*pairs, (nn.Linear, nn.BatchNorm1d, nn.LeakyReLU)], dtype_configs)


_CONVOLUTIONS: Final = (
    (nn.Conv1d, F.conv1d, nn.BatchNorm1d, nn.ConvTranspose1d, F.conv_transpose1d),
    (nn.Conv2d, F.conv2d, nn.BatchNorm2d, nn.ConvTranspose2d, F.conv_transpose2d),
    (nn.Conv3d, F.conv3d, nn.BatchNorm3d, nn.ConvTranspose3d, F.conv_transpose3d),
)


def convolutions(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Convolutions of one to three dimensions, with BatchNorm and ReLU behind them; transposed ones."""
    for conv, function, norm, transposed, transposed_function in _CONVOLUTIONS:
        yield from _convolution(conv, function, norm, dtype_configs)
        yield from _configs([transposed, transposed_function, (transposed, norm)], dtype_configs)


def convolutions_2d(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Convolutions of two dimensions, with BatchNorm and ReLU behind them."""
    conv, function, norm, *_ = _CONVOLUTIONS[1]
    yield from _convolution(conv, function, norm, dtype_configs)


def _convolution(conv: Any, function: Any, norm: Any, dtype_configs: Sequence[DTypeConfig]) -> Configs:
    relus = [(each, relu) for each in (conv, function) for relu in _RELUS]
    norms = [(conv, norm), *((conv, norm, relu) for relu in _RELUS)]
    yield from _configs([conv, function, *relus, *norms], dtype_configs)


def convolutions_with_addition(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Convolutions of two dimensions, with or without BatchNorm, as an operand of an addition, then ReLU."""
    for conv in (nn.Conv2d, (nn.BatchNorm2d, nn.Conv2d)):
        for added in ((torch.add, conv, MatchAllNode), (torch.add, MatchAllNode, conv)):
            for nested in (added, *((relu, added) for relu in _RELUS)):
                config = BackendPatternConfig().set_pattern_complex_format(nested)
                yield config.set_dtype_configs(dtype_configs)


def binary(
    dtype_configs: Sequence[DTypeConfig], functions: Sequence[Any] = (operator.add, operator.mul)
) -> Configs:
    """Additions and products, with ReLU behind them."""
    yield from _configs([*functions, *itertools.product(functions, _RELUS)], dtype_configs)


def cat(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Concatenation."""
    yield from _configs([torch.cat, torch.concat], dtype_configs, _SHARED)


def default_operators(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Operators with one activation, whose results have parameters of their own; matrix products."""
    modules = (
        nn.ELU,
        nn.LeakyReLU,
        nn.Hardswish,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
        nn.Dropout,
        nn.PReLU,
    )
    functions = (F.elu, F.hardswish, F.leaky_relu, F.dropout, F.group_norm, F.instance_norm, torch.matmul)
    yield from _configs([*modules, *functions], dtype_configs)


_FROM_0_TO_1: Final = (nn.Hardsigmoid, F.hardsigmoid, nn.Sigmoid, torch.sigmoid, nn.Softmax)
_FROM_NEG1_TO_1: Final = (nn.Tanh, torch.tanh)


def fixed_parameters(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Operators whose results lie in [0, 1] or [-1, 1]: their parameters in quint8 are no matter of data."""
    for functions, scale, zero_point in ((_FROM_0_TO_1, 1 / 256, 0), (_FROM_NEG1_TO_1, 2 / 256, 128)):
        fixed = DTypeWithConstraints(
            torch.quint8,
            quant_min_lower_bound=0,
            quant_max_upper_bound=255,
            scale_exact_match=scale,
            zero_point_exact_match=zero_point,
        )
        yield from _configs(functions, [_fixed(config, fixed) for config in dtype_configs])


def _fixed(config: DTypeConfig, fixed: DTypeWithConstraints) -> DTypeConfig:
    if config.input_dtype is not fixed.dtype:
        return config
    return DTypeConfig(
        fixed, fixed, config.weight_dtype_with_constraints, config.bias_dtype, config.is_dynamic
    )


_SHARING: Final = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.Hardtanh, nn.ReLU, nn.ReLU6, nn.Identity, nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle),
    *(torch.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d),
    *(F.hardtanh, F.relu, F.relu6, torch.clamp, "interpolate", F.pixel_shuffle, F.pixel_unshuffle),
    *(torch.flatten, torch.mean, torch.narrow, torch.repeat_interleave, torch.stack),
    *("contiguous", "detach", "permute", "repeat", "reshape", "squeeze", "transpose", "unsqueeze", "view"),
)


def sharing(dtype_configs: Sequence[DTypeConfig], *others: Any) -> Configs:
    """Operators that move or pick values: the result has the parameters of the input."""
    yield from _configs([*_SHARING, *others], dtype_configs, _SHARED)


def batch_norms(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """BatchNorm by itself, with ReLU behind it."""
    norms = (nn.BatchNorm2d, nn.BatchNorm3d)
    yield from _configs([*norms, *itertools.product(norms, _RELUS)], dtype_configs)


def layer_norms(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Layer norms, whose weight stays float."""
    yield from _configs([nn.LayerNorm, F.layer_norm], dtype_configs)


def recurrent(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Recurrent layers and cells."""
    yield from _configs([nn.GRUCell, nn.LSTMCell, nn.RNNCell, nn.LSTM, nn.GRU], dtype_configs)


def embeddings(dtype_configs: Sequence[DTypeConfig]) -> Configs:
    """Embeddings, whose table is quantized."""
    yield from _configs([nn.Embedding, nn.EmbeddingBag, F.embedding], dtype_configs)
