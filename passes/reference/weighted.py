"""Linear and convolutions: products of an activation and a weight, summed in integers.

The accumulator is ``out_dtype(operator, int32, x - x_zero_point, weight - weight_zero_point)``, to which
``round(bias / (x_scale · weight_scale))`` is added; int64 where the sum of so many products does not surely
fit into int32, and for dilated convolutions, which ATen has of no narrower integers. An addition behind the
operator is of that accumulator and the other tensor, each with its scale, rounded once.

Where the result is not quantized per tensor by known parameters, or a bias rounded to steps of the
accumulator would cost more than half a step of the output, the accumulator is scaled to float32 and the bias
added to that. Whatever post-operator stands behind then reads the float tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ...ir.schema import argument
from ...matchers.operator_pattern import KernelCall, QuantizedOperand, Refusal
from .arithmetic import (
    OUT_DTYPE,
    centered,
    channel_values,
    constant,
    integer_dtype,
    requantize,
    scaled,
    span,
)
from .operands import not_an_activation
from .rule import Rule, pattern

__all__ = ["WEIGHTED"]

_aten = torch.ops.aten

_DIMENSIONS: Final = {
    _aten.linear.default: 0,
    _aten.conv1d.default: 1,
    _aten.conv2d.default: 2,
    _aten.conv3d.default: 3,
}
"""The operators, and how many dimensions their windows have."""

_ROUNDING_OF_BIAS: Final = 0.5
"""How many steps of the output the rounding of a bias may cost: with the result's own, one in all."""


@attrs.frozen(eq=False)
class _Accumulator:
    """What is known of an accumulator before it is written.

    Args:
        operator: the linear or convolution.
        dimensions: of its window, 0 for a linear.
        narrowest: the narrowest integers that it can be computed in.
        scale: the real value of one step, as far as it is constant.
        factor: what else it is to be multiplied by, found at run time.
        bias: in steps, not rounded; None where there is none, or none that is known.
        largest: bound of the sum of products.
    """

    operator: Node
    dimensions: int
    narrowest: torch.dtype
    scale: float | Tensor
    factor: Node | None
    bias: Tensor | None
    largest: int

    @property
    def dtype(self) -> torch.dtype | None:
        """Holds the sum, with the bias and a zero point; None when nothing does."""
        bias = 0 if self.bias is None or not self.bias.numel() else float(self.bias.abs().max())
        dtype = integer_dtype(self.largest + math.ceil(bias) + 2**16) if math.isfinite(bias) else None
        return None if dtype is None else max(dtype, self.narrowest, key=lambda d: d.itemsize)


@attrs.frozen
class Weighted:
    """An activation and a weight, multiplied and summed."""

    name: str = "integer accumulator"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why there is no such accumulator."""
        x, weight = call.operands["x"], call.operands["weight"]
        refusal = not_an_activation(x) or _not_a_weight(call, weight)
        if refusal is None and "other" in call.operands:
            refusal = not_an_activation(call.operands["other"]) or _is_dynamic(call.quantized("other"))
        if refusal is not None:
            return refusal
        accumulator = _accumulator(call)
        if accumulator.dtype is None:
            return Refusal("accumulator-overflow", "the sum of products does not surely fit into 64 bits")
        if call.quantization is None:
            addition = "other" in call.operands
            return Refusal("result-read-in-float", "the sum is not quantized") if addition else None
        if accumulator.factor is not None:
            return Refusal("scale-found-at-run-time", "the activation's parameters are not constant")
        return _imprecise_bias(call, accumulator)

    def emit(self, call: KernelCall) -> Node:
        """Insert the accumulator, and what brings it to the output."""
        accumulator = _accumulator(call)
        products = _products(call, accumulator)
        if call.quantization is None:
            return _in_float(call, products, accumulator)
        if accumulator.bias is not None:
            bias = constant(call, "bias_in_steps", accumulator.bias.round().to(accumulator.dtype))
            products = call.graph.call_function(_aten.add.Tensor, (products, bias))
        terms: list[tuple[Node, float | Tensor]] = [(products, accumulator.scale)]
        if "other" in call.operands:
            other = call.quantized("other")
            terms.append((centered(call, other), other.scale))
        return requantize(call, terms, call.quantization)


def _not_a_weight(call: KernelCall, weight: object) -> Refusal | None:
    if not isinstance(weight, QuantizedOperand):
        return Refusal("weight-not-quantized")
    if weight.axis is None:
        return _is_dynamic(weight)
    if weight.axis != 0:
        return Refusal("weight-not-per-output-channel", f"its scales are along axis {weight.axis}")
    if channel_values(call, weight.scale) is None:
        return Refusal("scale-found-at-run-time", "the weight's scales are not constant")
    return None


def _is_dynamic(operand: QuantizedOperand) -> Refusal | None:
    if isinstance(operand.scale, Node):
        return Refusal("scale-found-at-run-time", f"the parameters of %{operand.node.name} are not constant")
    return None


def _imprecise_bias(call: KernelCall, accumulator: _Accumulator) -> Refusal | None:
    if call.operands["bias"] is None:
        return None
    if accumulator.bias is None:
        return Refusal("bias-not-constant", "it is added in float")
    assert call.quantization is not None
    steps = (accumulator.bias - accumulator.bias.round()) * (accumulator.scale / call.quantization.scale)
    if bool((steps.abs() > _ROUNDING_OF_BIAS).any()):
        return Refusal("bias-between-steps", "rounding it would change the output; it is added in float")
    return None


def _accumulator(call: KernelCall) -> _Accumulator:
    operator, dimensions = next(
        (node, count) for target, count in _DIMENSIONS.items() for node in call.nodes if node.target is target
    )
    x, weight = call.quantized("x"), call.quantized("weight")
    found_at_run_time = isinstance(x.scale, Node)
    channels = channel_values(call, weight.scale)
    scale = weight.scale if channels is None else _over_channels(channels, dimensions)
    scale = scale if found_at_run_time else x.scale * scale
    bias = None if found_at_run_time else _bias(call)
    # ATen has dilated convolutions of int64, but not of narrower integers.
    is_dilated = dimensions > 0 and any(d != 1 for d in _each(argument(operator, "dilation"), dimensions))
    terms = math.prod(weight.node.meta["val"].shape[1:])
    return _Accumulator(
        operator=operator,
        dimensions=dimensions,
        narrowest=torch.int64 if is_dilated else torch.int32,
        scale=scale,
        factor=x.scale if found_at_run_time else None,
        bias=None if bias is None else _over_channels(bias, dimensions) / scale,
        largest=terms * span(call, x) * span(call, weight),
    )


def _bias(call: KernelCall) -> Tensor | None:
    """The real bias in float64, ``[C]``; None where there is none, or none that is constant."""
    bias = call.operands["bias"]
    if isinstance(bias, QuantizedOperand):
        integers = channel_values(call, bias.node)
        scale, zero_point = (
            channel_values(call, v) if isinstance(v, Node) else v for v in (bias.scale, bias.zero_point)
        )
        if integers is None or scale is None:
            return None
        return (integers - (0 if zero_point is None else zero_point)) * scale
    return channel_values(call, bias)


def _over_channels(values: Tensor, dimensions: int) -> Tensor:
    """``values``, one a channel, in the shape that results with these windows broadcast with."""
    return values.view(-1, *[1] * dimensions)


def _products(call: KernelCall, accumulator: _Accumulator) -> Node:
    """The sum of products, without bias."""
    graph, operator, dimensions = call.graph, accumulator.operator, accumulator.dimensions
    x, weight = centered(call, call.quantized("x")), centered(call, call.quantized("weight"))
    if dimensions == 0:
        return graph.call_function(OUT_DTYPE, (_aten.linear.default, accumulator.dtype, x, weight))
    stride, padding, dilation = (
        _each(argument(operator, name), dimensions) for name in ("stride", "padding", "dilation")
    )
    geometry = (stride, padding, dilation, False, [0] * dimensions, argument(operator, "groups"))
    # The general convolution takes a batch only.
    lacks_batch = operator.meta["val"].dim() == dimensions + 1
    if lacks_batch:
        x = graph.call_function(_aten.unsqueeze.default, (x, 0))
    arguments = (_aten.convolution.default, accumulator.dtype, x, weight, None, *geometry)
    products = graph.call_function(OUT_DTYPE, arguments)
    return graph.call_function(_aten.squeeze.dim, (products, 0)) if lacks_batch else products


def _each(value: Any, dimensions: int) -> list[int]:
    # One number may stand for all dimensions.
    return [*value] * (dimensions if len(value) == 1 else 1)


def _in_float(call: KernelCall, products: Node, accumulator: _Accumulator) -> Node:
    """The accumulator as a float32 tensor, the bias added."""
    graph = call.graph
    real = scaled(call, products, accumulator.scale)
    if accumulator.factor is not None:
        real = graph.call_function(_aten.mul.Tensor, (real, accumulator.factor))
    bias = accumulator.operator.args[2]
    if isinstance(bias, Node):
        wide = graph.call_function(_aten.to.dtype, (bias, torch.float64))
        if accumulator.dimensions:
            shape = [-1, *[1] * accumulator.dimensions]
            wide = graph.call_function(_aten.view.default, (wide, shape))
        real = graph.call_function(_aten.add.Tensor, (real, wide))
    return graph.call_function(_aten.to.dtype, (real, torch.float32))


def _weighted(name: str, function: Callable[..., Tensor], dimensions: int) -> tuple[Rule, Rule]:
    """The rules of an operator: with an addition behind it, and alone."""
    window = [1] * dimensions

    def with_addition(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
        return function(x, weight, bias) + other

    def alone(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return function(x, weight, bias)

    def inputs() -> tuple[Tensor, ...]:
        return torch.zeros(1, 2, *window), torch.zeros(3, 2, *window), torch.zeros(3)

    def inputs_with_other() -> tuple[Tensor, ...]:
        return (*inputs(), torch.zeros(1, 3, *window))

    return (
        Rule(f"{name}-add", pattern(with_addition, inputs_with_other), Weighted()),
        Rule(name, pattern(alone, inputs), Weighted(), leaves_float=True),
    )


WEIGHTED: Final = (
    *_weighted("linear", F.linear, 0),
    *_weighted("conv1d", F.conv1d, 1),
    *_weighted("conv2d", F.conv2d, 2),
    *_weighted("conv3d", F.conv3d, 3),
)
