"""What X86 CPUs run in int8 through Inductor, each declared once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from ...matchers.operator_pattern import Kernel, Mode, OperatorPattern, Role
from ..guards import constant_weight, dimensions, float32_activations, same_shape
from .float_linear import HalfLinear, WeightOnlyLinear
from .kernels import QConv, QConvAdd, QLinear, QLinearAdd
from .movers import MOVERS
from .post_operators import AFTER_CONVOLUTION, AFTER_LINEAR, PostOperator

__all__ = ["PATTERNS"]

_WEIGHTED = (Role.ACTIVATION, Role.WEIGHT, Role.BIAS)


def _conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv1d(x, weight, bias)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias)


def _conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(x, weight, bias)


def _conv2d_add(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias) + other


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def _linear_add(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    return F.linear(x, weight, bias) + other


def _conv_inputs(dims: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.zeros(1, 3, *[8] * dims), torch.zeros(4, 3, *[3] * dims), torch.zeros(4))


def _conv2d_add_inputs() -> tuple[Tensor, ...]:
    return (*_conv_inputs(2)(), torch.zeros(1, 4, 6, 6))


def _linear_inputs() -> tuple[Tensor, ...]:
    return torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)


def _linear_add_inputs() -> tuple[Tensor, ...]:
    return (*_linear_inputs(), torch.zeros(2, 4))


# Of bfloat16 results the kernels are told: what ``propagate-bf16`` makes of a model lowers like float32.
_FLOAT_INPUT = float32_activations(0, or_bfloat16=True)
_WEIGHT_GUARDS = (constant_weight(1), _FLOAT_INPUT)
_ADD_GUARDS = (float32_activations(0, 3), same_shape(3))


def _conv(name: str, function: Callable[..., Tensor], dims: int) -> OperatorPattern:
    guards = (*_WEIGHT_GUARDS, dimensions(0, dims + 2))
    return OperatorPattern(name, function, _conv_inputs(dims), _WEIGHTED, guards=guards)


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


_CONV2D_ADD = OperatorPattern(
    "conv2d-add",
    _conv2d_add,
    _conv2d_add_inputs,
    (*_WEIGHTED, Role.ACTIVATION),
    guards=(*_WEIGHT_GUARDS, dimensions(0, 4), *_ADD_GUARDS),
)
_LINEAR = OperatorPattern(
    "linear",
    _linear,
    _linear_inputs,
    _WEIGHTED,
    guards=(*_WEIGHT_GUARDS, dimensions(1, 2)),
    modes=(Mode.STATIC, Mode.DYNAMIC),
)
_LINEAR_ADD = attrs.evolve(
    _LINEAR,
    name="linear-add",
    function=_linear_add,
    example_inputs=_linear_add_inputs,
    roles=(*_WEIGHTED, Role.ADDEND),
    guards=(*_LINEAR.guards, *_ADD_GUARDS),
    modes=(Mode.STATIC,),
)
_HALF = attrs.evolve(_LINEAR, modes=(Mode.HALF_WEIGHT,))
_RELU = tuple(post for post in AFTER_CONVOLUTION if post.name == "relu")

PATTERNS: tuple[OperatorPattern, ...] = (
    # With one dimension the kernel takes relu alone behind it, with three nothing.
    *_family(_conv("conv1d", _conv1d, 1), QConv, _RELU),
    *_family(_conv("conv2d", _conv2d, 2), QConv, AFTER_CONVOLUTION),
    *_family(_conv("conv3d", _conv3d, 3), QConv, ()),
    *_family(_CONV2D_ADD, QConvAdd, _RELU),
    *_family(_LINEAR, QLinear, AFTER_LINEAR),
    *_family(_LINEAR_ADD, QLinearAdd, _RELU),
    attrs.evolve(_LINEAR, name="linear-weight-only", kernel=WeightOnlyLinear(), modes=(Mode.WEIGHT_ONLY,)),
    attrs.evolve(_HALF, name="linear-half-weight", kernel=HalfLinear()),
    attrs.evolve(
        _HALF, name="linear-relu-half-weight", function=_RELU[0].after(_linear), kernel=HalfLinear(relu=True)
    ),
    *MOVERS,
)
