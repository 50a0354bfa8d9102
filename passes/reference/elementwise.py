"""Sums, products and clamps of quantized tensors, element by element.

A sum is of two integers of different scales: each is multiplied by the ratio of its scale and the output's,
and the sum rounded once. A product is one integer, scaled once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs
import torch
from torch import Tensor
from torch.fx import Graph, Node

from ...ir import quantized_decomposed as qd
from ...ir.schema import argument
from ...matchers.operator_pattern import KernelCall, QuantizedOperand, Refusal
from .arithmetic import OUT_DTYPE, centered, integer_dtype, requantize, span
from .operands import CLAMPS, bounds_of, narrowed, not_an_activation
from .rule import Found, Rule, calls, pattern

__all__ = ["ELEMENTWISE", "not_static"]

_aten = torch.ops.aten


def not_static(call: KernelCall) -> Refusal | None:
    """None where all operands and the output are quantized per tensor by constant parameters."""
    for operand in call.operands.values():
        refusal = not_an_activation(operand)
        if refusal is not None:
            return refusal
        assert isinstance(operand, QuantizedOperand)
        if isinstance(operand.scale, Node):
            detail = f"the parameters of %{operand.node.name} are not constant"
            return Refusal("scale-found-at-run-time", detail)
    if call.quantization is None:
        return Refusal("result-read-in-float", "it is not quantized by constant parameters")
    return None


@attrs.frozen
class Sum:
    """``x + y``."""

    name: str = "integer sum"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the sum stays float."""
        if argument(call.nodes[0], "alpha") != 1:
            return Refusal("scaled-addition", "alpha is not 1")
        return not_static(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert the sum."""
        assert call.quantization is not None
        operands = [call.quantized(name) for name in call.operands]
        return requantize(call, [(centered(call, o), o.scale) for o in operands], call.quantization)


@attrs.frozen
class Product:
    """``x · y``."""

    name: str = "integer product"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the product stays float."""
        refusal = not_static(call)
        if refusal is None and self._dtype(call) is None:
            return Refusal("accumulator-overflow", "the product does not surely fit into 64 bits")
        return refusal

    def emit(self, call: KernelCall) -> Node:
        """Insert the product."""
        assert call.quantization is not None
        x, y = (call.quantized(name) for name in call.operands)
        arguments = (_aten.mul.Tensor, self._dtype(call), centered(call, x), centered(call, y))
        product = call.graph.call_function(OUT_DTYPE, arguments)
        return requantize(call, [(product, x.scale * y.scale)], call.quantization)

    def _dtype(self, call: KernelCall) -> torch.dtype | None:
        x, y = (call.quantized(name) for name in call.operands)
        narrowest = integer_dtype(span(call, x) * span(call, y))
        return torch.int32 if narrowest is torch.int16 else narrowest


@attrs.frozen
class Clamp:
    """ReLU and the like by themselves, and a change of scale without any operator."""

    name: str = "integer clamp"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the operator stays float."""
        if call.nodes and bounds_of(call.nodes[0]) is None:
            return Refusal("bounds-not-constant")
        return not_static(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert the clamp."""
        output = call.quantization
        assert output is not None
        if call.nodes:
            bounds = bounds_of(call.nodes[0])
            assert bounds is not None
            output = narrowed(output, bounds)
        (x,) = (call.quantized(name) for name in call.operands)
        return requantize(call, [(centered(call, x), x.scale)], output)


def _sum(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def _product(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def _two() -> tuple[Tensor, ...]:
    return torch.zeros(2, 3), torch.zeros(2, 3)


def _between_parameters(graph: Graph) -> Iterator[Found]:
    """Where what is dequantized is quantized again at once."""
    for quantize in graph.find_nodes(op="call_function", target=qd.QUANTIZE_PER_TENSOR):
        source = quantize.args[0]
        if qd.is_dequantize(source):
            yield Found((), {"x": source}, quantize)


ELEMENTWISE: Final = (
    Rule("add", pattern(_sum, _two), Sum()),
    Rule("mul", pattern(_product, _two), Product()),
    Rule("clamp", calls(*CLAMPS), Clamp()),
    Rule("requantize", _between_parameters, Clamp()),
)
