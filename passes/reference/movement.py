"""Operators that only move values: they do the same with integers.

Where all scales and zero points are one, the integers are moved as they are; otherwise those of each tensor
are brought to the output's first.
"""

from __future__ import annotations

from typing import Final

import attrs
import torch
from torch.fx import Node

from ...ir import quantized_decomposed as qd
from ...matchers.operator_pattern import KernelCall, OutputQuantization, QuantizedOperand, Refusal
from .arithmetic import centered, requantize
from .elementwise import not_static
from .rule import Rule, calls

__all__ = ["MOVEMENT"]

_aten = torch.ops.aten

_JOINS: Final = (_aten.cat.default, _aten.stack.default)
_MOVES: Final = (
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.expand.default,
    _aten.flatten.using_ints,
    _aten.movedim.int,
    _aten.narrow.default,
    _aten.permute.default,
    _aten.pixel_shuffle.default,
    _aten.pixel_unshuffle.default,
    _aten.repeat.default,
    _aten.reshape.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.swapaxes.default,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unflatten.int,
    _aten.unsqueeze.default,
    _aten.view.default,
)


@attrs.frozen
class Movement:
    """The operator itself, called on integers."""

    name: str = "operator on integers"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the values stay float."""
        return not_static(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert the operator."""
        output = call.quantization
        assert output is not None
        operator = call.nodes[0]
        moved = {
            source: self._brought(call, call.quantized(source.name), output)
            for source in operator.all_input_nodes
            if qd.is_dequantize(source)
        }
        new = call.graph.node_copy(operator, lambda node: moved.get(node, node))
        # What it has of the float result would be wrong here.
        new.meta = {}
        return new

    def _brought(self, call: KernelCall, x: QuantizedOperand, output: OutputQuantization) -> Node:
        has_parameters = (x.scale, x.zero_point, x.dtype) == (output.scale, output.zero_point, output.dtype)
        if has_parameters and output.quant_min <= x.quant_min and x.quant_max <= output.quant_max:
            return x.node
        return requantize(call, [(centered(call, x), x.scale)], output)


MOVEMENT: Final = (
    Rule("cat", calls(*_JOINS), Movement()),
    Rule("movement", calls(*_MOVES), Movement()),
)
