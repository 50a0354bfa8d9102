"""What XNNPACK runs in int8, each declared once.

The facts are those of ExecuTorch's XNNPACK partitioner. It takes dequantize → operator → quantize, so what
an operator computes is quantized whoever reads it, and pooling, reshapes and clamps behind it keep its scale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from ...matchers.operator_pattern import Guard, Mode, OperatorPattern, Role, Sharing
from ..guards import constant_weight, dimensions, float32_activations
from .guards import averages_whole_image, joins_two, not_grouped, pools_without_gaps, static_slice

__all__ = ["PATTERNS"]

_WEIGHTED = (Role.ACTIVATION, Role.WEIGHT, Role.BIAS)
_BINARY = (Role.ACTIVATION, Role.ACTIVATION)


def _conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv1d(x, weight, bias)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias)


def _conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv_transpose2d(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def _relu(x: Tensor) -> Tensor:
    return F.relu(x)


def _hardtanh(x: Tensor) -> Tensor:
    return F.hardtanh(x)


def _max_pool2d(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3)


def _adaptive_avg_pool2d(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, (1, 1))


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _cat(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 1)


def _flatten(x: Tensor) -> Tensor:
    return torch.flatten(x, 1)


def _reshape(x: Tensor) -> Tensor:
    return x.reshape(1, -1)


def _view(x: Tensor) -> Tensor:
    return x.view(1, -1)


def _permute(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _transpose(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _slice(x: Tensor) -> Tensor:
    return x[:, 1:]


def _add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def _mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def _zeros(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.zeros(shape) for shape in shapes)


_IMAGE = (1, 3, 8, 8)


def _compute(
    name: str,
    function: Callable[..., Tensor],
    example_inputs: Callable[[], tuple[Tensor, ...]],
    guards: tuple[Guard, ...],
    fused: tuple[Callable[[Tensor], Tensor], ...],
    *,
    roles: tuple[Role, ...] = _WEIGHTED,
    weight_axis: int = 0,
    dynamic: bool = False,
) -> Iterator[OperatorPattern]:
    """An operator that computes, with nothing behind it and with each of the ``fused`` clamps."""
    pattern = OperatorPattern(
        name,
        function,
        example_inputs,
        roles,
        guards=guards,
        modes=(Mode.STATIC, Mode.DYNAMIC) if dynamic else (Mode.STATIC,),
        quantizes_output=True,
        weight_axis=weight_axis,
    )
    yield pattern
    for clamp in fused:
        # With ranges found at run time the clamp would be a float operator of its own.
        yield attrs.evolve(
            pattern,
            name=f"{name}-{clamp.__name__.lstrip('_')}",
            function=_after(clamp, function),
            modes=(Mode.STATIC,),
        )


def _after(clamp: Callable[[Tensor], Tensor], function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def both(*tensors: Tensor) -> Tensor:
        return clamp(function(*tensors))

    return both


def _follower(name: str, function: Callable[..., Tensor], *guards: Guard, inputs: int = 1) -> OperatorPattern:
    return OperatorPattern(
        name,
        function,
        _zeros(*[_IMAGE] * inputs),
        (Role.ACTIVATION,) * inputs,
        sharing=Sharing.SAME_AS_INPUT,
        guards=guards,
    )


_CLAMPS = (_relu, _hardtanh)
_WEIGHT_GUARDS = (constant_weight(1), float32_activations(0))
_BINARY_GUARDS = (float32_activations(0, 1),)

PATTERNS: tuple[OperatorPattern, ...] = (
    *_compute(
        "conv1d",
        _conv1d,
        _zeros((1, 3, 8), (4, 3, 3), (4,)),
        (*_WEIGHT_GUARDS, dimensions(0, 3)),
        _CLAMPS,
    ),
    *_compute(
        "conv2d",
        _conv2d,
        _zeros(_IMAGE, (4, 3, 3, 3), (4,)),
        (*_WEIGHT_GUARDS, dimensions(0, 4)),
        _CLAMPS,
    ),
    *_compute(
        "conv_transpose2d",
        _conv_transpose2d,
        _zeros(_IMAGE, (3, 4, 3, 3), (4,)),
        (*_WEIGHT_GUARDS, dimensions(0, 4), not_grouped),
        _CLAMPS,
        weight_axis=1,
    ),
    *_compute(
        "linear",
        _linear,
        _zeros((2, 3), (4, 3), (4,)),
        (*_WEIGHT_GUARDS, dimensions(1, 2)),
        _CLAMPS,
        dynamic=True,
    ),
    *_compute("add", _add, _zeros(_IMAGE, _IMAGE), _BINARY_GUARDS, (_relu,), roles=_BINARY),
    *_compute("mul", _mul, _zeros(_IMAGE, _IMAGE), _BINARY_GUARDS, (_relu,), roles=_BINARY),
    _follower("relu", _relu),
    _follower("hardtanh", _hardtanh),
    _follower("max_pool2d", _max_pool2d, pools_without_gaps),
    _follower("adaptive_avg_pool2d", _adaptive_avg_pool2d, averages_whole_image),
    _follower("mean", _mean, averages_whole_image),
    _follower("cat", _cat, joins_two, inputs=2),
    _follower("flatten", _flatten),
    _follower("reshape", _reshape),
    _follower("view", _view),
    _follower("permute", _permute),
    _follower("transpose", _transpose),
    _follower("slice", _slice, static_slice),
)
