"""The integer arithmetic that rules are written with, as nodes put in where the graph is being written.

A quantized tensor ``q`` means ``scale · (q - zero_point)``. Rules compute with ``q - zero_point``, in
integers wide enough for it, add and multiply in accumulators that cannot overflow, and come back by
:func:`requantize`. This one step uses a real multiplier, the ratio of the scales: the product is float64,
rounded to nearest, ties to even, as quantize rounds. So a result is the rounded exact one, and a backend with
multipliers of its own (fixed-point ones, say) can be compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.fx import Node

from ...ir.attributes import FreeNames, get_tensor, is_constant, set_tensor
from ...matchers.operator_pattern import KernelCall, OutputQuantization, QuantizedOperand

__all__ = [
    "OUT_DTYPE",
    "Scale",
    "centered",
    "channel_values",
    "constant",
    "integer_dtype",
    "requantize",
    "scaled",
    "span",
]

_aten = torch.ops.aten

OUT_DTYPE: Final = torch.ops.higher_order.out_dtype
"""``(operator, dtype, *args)``: the operator computed and returned in ``dtype``."""

Scale = float | torch.Tensor | Node
"""A real number; one a channel, float64 ``[C]`` with dimensions of 1 behind; or one found at run time."""

_INTEGERS: Final = (torch.int16, torch.int32, torch.int64)


def integer_dtype(largest: int) -> torch.dtype | None:
    """The narrowest of int16, int32 and int64 that holds ±``largest``; None when none does."""
    return next((dtype for dtype in _INTEGERS if largest <= torch.iinfo(dtype).max), None)


def channel_values(call: KernelCall, value: object) -> torch.Tensor | None:
    """The per-channel scales or zero points behind ``value``, in float64; None if they are not constant."""
    if not isinstance(value, Node) or not is_constant(value):
        return None
    return get_tensor(call.gm, str(value.target)).detach().double()


def span(call: KernelCall, operand: QuantizedOperand) -> int:
    """The largest distance of a value of ``operand`` from its zero point."""
    low, high, zero_point = operand.quant_min, operand.quant_max, operand.zero_point
    if isinstance(zero_point, int):
        return max(high - zero_point, zero_point - low)
    values = channel_values(call, zero_point)
    if zero_point is None or (values is not None and not values.any()):
        return max(high, -low)
    return high - low


def centered(call: KernelCall, operand: QuantizedOperand, at_least: torch.dtype = torch.int16) -> Node:
    """``operand`` less its zero point, in integers that hold it."""
    dtype = integer_dtype(max(span(call, operand), operand.quant_max, -operand.quant_min))
    assert dtype is not None
    dtype = max(dtype, at_least, key=lambda d: d.itemsize)
    wide = call.graph.call_function(_aten.to.dtype, (operand.node, dtype))
    zero_point: Any = operand.zero_point
    if isinstance(zero_point, Node):
        values = channel_values(call, zero_point)
        if values is not None and not values.any():
            return wide
        dimensions = operand.node.meta["val"].dim() if operand.axis is not None else 0
        shape = [-1 if i == operand.axis else 1 for i in range(dimensions)]
        zero_point = call.graph.call_function(_aten.view.default, (zero_point, shape))
        zero_point = call.graph.call_function(_aten.to.dtype, (zero_point, dtype))
    elif not zero_point:
        return wide
    return call.graph.call_function(_aten.sub.Tensor, (wide, zero_point))


def constant(call: KernelCall, suffix: str, value: torch.Tensor) -> Node:
    """A new buffer of the module, named after the place ``call``, and the node that reads it."""
    named_after = call.nodes[0] if call.nodes else call.output
    name = FreeNames(call.gm).fresh(f"{named_after.name}_{suffix}")
    set_tensor(call.gm, name, value)
    return call.graph.get_attr(name)


def scaled(call: KernelCall, integers: Node, scale: Scale) -> Node:
    """``integers`` times ``scale``, in float64."""
    real = call.graph.call_function(_aten.to.dtype, (integers, torch.float64))
    if isinstance(scale, torch.Tensor):
        scale = constant(call, "multiplier", scale)
    return call.graph.call_function(_aten.mul.Tensor, (real, scale))


def requantize(call: KernelCall, terms: Sequence[tuple[Node, Scale]], output: OutputQuantization) -> Node:
    """The sum of integer tensors times their scales, quantized.

    ``clamp(round(Σ integers · scale / output.scale) + output.zero_point)``. One tensor whose scale is the
    output's is not rounded: nothing but integers then.
    """
    graph = call.graph
    ratios = [(integers, scale / output.scale) for integers, scale in terms if not isinstance(scale, Node)]
    assert len(ratios) == len(terms)
    (total, ratio), *others = ratios
    if others or isinstance(ratio, torch.Tensor) or ratio != 1.0:
        total = scaled(call, total, ratio)
        for integers, factor in others:
            total = graph.call_function(_aten.add.Tensor, (total, scaled(call, integers, factor)))
        total = graph.call_function(_aten.round.default, (total,))
    else:
        total = graph.call_function(_aten.to.dtype, (total, torch.int64))
    if output.zero_point:
        total = graph.call_function(_aten.add.Tensor, (total, output.zero_point))
    clamped = graph.call_function(_aten.clamp.default, (total, output.quant_min, output.quant_max))
    return graph.call_function(_aten.to.dtype, (clamped, output.dtype))
