"""Quantize and dequantize written out, for what no rule took: the same arithmetic, operator by operator.

The formulas are those of the ``quantized_decomposed`` operators, in float32, so that not a bit changes:
``clamp(round(x · (1 / scale)) + zero_point, quant_min, quant_max)`` and ``(q - zero_point) · scale``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from ...ir import quantized_decomposed as qd

__all__ = ["write_dequantize", "write_quantize"]

_aten = torch.ops.aten


def write_quantize(graph: Graph, node: Node) -> Node:
    """What ``node``, any quantize, does, written where the graph is being written."""
    args: Any = node.args
    quant_min, quant_max, dtype = args[-3:]
    scale, zero_point = _parameters(graph, node)
    if isinstance(scale, Node):
        inverse = graph.call_function(_aten.reciprocal.default, (scale,))
        # It is float64 where it is found at run time, which next to one number would be the product's dtype.
        inverse = graph.call_function(_aten.to.dtype, (inverse, torch.float32))
    else:
        inverse = 1.0 / scale
    x = args[0]
    value = x.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.float32:
        x = graph.call_function(_aten.to.dtype, (x, torch.float32))
    rounded = graph.call_function(_aten.mul.Tensor, (x, inverse))
    rounded = graph.call_function(_aten.round.default, (rounded,))
    if zero_point is not None and zero_point != 0:
        rounded = graph.call_function(_aten.add.Tensor, (rounded, zero_point))
    clamped = graph.call_function(_aten.clamp.default, (rounded, quant_min, quant_max))
    return graph.call_function(_aten.to.dtype, (clamped, dtype))


def write_dequantize(graph: Graph, node: Node) -> Node:
    """What ``node``, any dequantize, does, written where the graph is being written."""
    scale, zero_point = _parameters(graph, node)
    out_dtype = node.kwargs.get("out_dtype") or torch.float32
    value = graph.call_function(_aten.to.dtype, (node.args[0], out_dtype))
    if zero_point is not None and zero_point != 0:
        value = graph.call_function(_aten.sub.Tensor, (value, zero_point))
    value = graph.call_function(_aten.mul.Tensor, (value, scale))
    return graph.call_function(_aten.to.dtype, (value, out_dtype)) if isinstance(scale, Node) else value


def _parameters(graph: Graph, node: Node) -> tuple[Any, Any]:
    """Scale and zero point: numbers, or nodes of tensors that broadcast with what is quantized."""
    scale: Any = node.args[1]
    zero_point: Any = node.args[2]
    if node.target in (qd.QUANTIZE_PER_CHANNEL, qd.DEQUANTIZE_PER_CHANNEL):
        source: Any = node.args[0]
        axis: Any = node.args[3]
        shape = [1] * source.meta["val"].dim()
        shape[axis] = -1
    elif isinstance(scale, Node):
        # As tensors without dimensions they are numbers: the result keeps its dtype and its shape.
        shape = []
    else:
        return scale, zero_point
    return tuple(
        p if p is None else graph.call_function(_aten.view.default, (p, shape)) for p in (scale, zero_point)
    )  # pyright: ignore[reportReturnType]
