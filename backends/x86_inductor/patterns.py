"""What X86 CPUs run in int8 through Inductor, each declared once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from ...matchers.operator_pattern import Kernel, OperatorPattern, Role, Sharing
from ..guards import constant_weight, dimensions, float32_activations, same_shape
from .kernels import IntegerOperator, QConv, QConvAdd, QLinear
from .post_operators import AFTER_CONVOLUTION, AFTER_LINEAR, PostOperator

__all__ = ["PATTERNS"]

_WEIGHTED = (Role.ACTIVATION, Role.WEIGHT, Role.BIAS)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias)


def _conv2d_add(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias) + other


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def _max_pool2d(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3)


def _avg_pool2d(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3)


def _adaptive_avg_pool2d(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, (1, 1))


def _flatten(x: Tensor) -> Tensor:
    return torch.flatten(x, 1)


def _cat(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 1)


def _conv2d_inputs() -> tuple[Tensor, ...]:
    return torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3), torch.zeros(4)


def _conv2d_add_inputs() -> tuple[Tensor, ...]:
    return (*_conv2d_inputs(), torch.zeros(1, 4, 6, 6))


def _linear_inputs() -> tuple[Tensor, ...]:
    return torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)


def _image() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 3, 8, 8),)


def _two_images() -> tuple[Tensor, ...]:
    return torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)


def _follower(
    name: str,
    function: Callable[..., Tensor],
    example_inputs: Callable[[], tuple[Any, ...]],
    kernel: IntegerOperator | None,
    inputs: int = 1,
) -> OperatorPattern:
    return OperatorPattern(
        name,
        function,
        example_inputs,
        (Role.ACTIVATION,) * inputs,
        kernel,
        sharing=Sharing.SAME_AS_INPUT,
    )


_CONV_GUARDS = (constant_weight(1), float32_activations(0), dimensions(0, 4))
_ADD_ROLES = (*_WEIGHTED, Role.ACTIVATION)
_ADD_GUARDS = (*_CONV_GUARDS, float32_activations(3), same_shape(3))
_LINEAR_GUARDS = (constant_weight(1), float32_activations(0), dimensions(1, 2))


def _family(
    pattern: OperatorPattern,
    kernel: Callable[[PostOperator | None], Kernel],
    post_operators: Iterable[PostOperator],
) -> tuple[OperatorPattern, ...]:
    """``pattern`` with nothing behind it, and with each of the post-operators."""
    return (
        attrs.evolve(pattern, kernel=kernel(None)),
        *(
            attrs.evolve(
                pattern,
                name=f"{pattern.name}-{post.name}",
                function=post.after(pattern.function),
                kernel=kernel(post),
            )
            for post in post_operators
        ),
    )


_CONV2D = OperatorPattern("conv2d", _conv2d, _conv2d_inputs, _WEIGHTED, guards=_CONV_GUARDS)
_CONV2D_ADD = OperatorPattern("conv2d-add", _conv2d_add, _conv2d_add_inputs, _ADD_ROLES, guards=_ADD_GUARDS)
_LINEAR = OperatorPattern("linear", _linear, _linear_inputs, _WEIGHTED, guards=_LINEAR_GUARDS)
_RELU = tuple(post for post in AFTER_CONVOLUTION if post.name == "relu")

PATTERNS: tuple[OperatorPattern, ...] = (
    *_family(_CONV2D, QConv, AFTER_CONVOLUTION),
    *_family(_CONV2D_ADD, QConvAdd, _RELU),
    *_family(_LINEAR, QLinear, AFTER_LINEAR),
    _follower("max_pool2d", _max_pool2d, _image, IntegerOperator(widen=True)),
    # Averages round, so they are left to Inductor: it fuses dequantize → average → quantize into one loop
    # that reads and writes 8-bit values.
    _follower("avg_pool2d", _avg_pool2d, _image, None),
    _follower("adaptive_avg_pool2d", _adaptive_avg_pool2d, _image, None),
    _follower("flatten", _flatten, _image, IntegerOperator()),
    _follower("cat", _cat, _two_images, IntegerOperator(), inputs=2),
)
