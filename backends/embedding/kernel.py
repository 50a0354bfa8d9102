"""Embedding of integer rows: look up, then dequantize what was looked up."""

from __future__ import annotations

import attrs
import torch
from torch.fx import Node

from ...matchers.operator_pattern import KernelCall, Refusal

__all__ = ["RowsOfIntegers"]

_aten = torch.ops.aten


@attrs.frozen
class RowsOfIntegers:
    """``(rows - zero_points) * scales`` of the integer rows that were asked for, in the dtype of the table.

    What dequantize → embedding computes, without ever having the whole table in float. The compiler makes one
    loop of it.
    """

    name: str = "aten.embedding of integers"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the weight does not fit."""
        return None if call.quantized("weight").axis == 0 else Refusal("weight-not-scaled-per-row")

    def emit(self, call: KernelCall) -> Node:
        """Insert the look-ups and the arithmetic."""
        graph, weight, indices = call.graph, call.quantized("weight"), call.float("indices")

        def looked_up(table: Node) -> Node:
            return graph.call_function(_aten.embedding.default, (table, indices))

        def of_rows(values: Node) -> Node:
            return looked_up(graph.call_function(_aten.unsqueeze.default, (values, 1)))

        rows = graph.call_function(_aten.to.dtype, (looked_up(weight.node), torch.float32))
        shifted = graph.call_function(_aten.sub.Tensor, (rows, of_rows(weight.zero_point)))
        result = graph.call_function(_aten.mul.Tensor, (shifted, of_rows(weight.scale)))
        value = call.output.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype is not torch.float32:
            result = graph.call_function(_aten.to.dtype, (result, value.dtype))
        return result
