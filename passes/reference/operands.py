"""Reading a Q/DQ graph: what a dequantize gives, and what follows an operator up to its quantize."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
import torch
from torch.fx import Node

from ...ir import quantized_decomposed as qd
from ...ir.schema import argument
from ...matchers.operator_pattern import OutputQuantization, QuantizedOperand, Refusal

__all__ = [
    "CLAMPS",
    "Tail",
    "bounds_of",
    "find_tail",
    "narrowed",
    "not_an_activation",
    "read_operand",
    "tail_at",
]

_aten = torch.ops.aten


def read_operand(node: Node | None) -> QuantizedOperand | Node | None:
    """What ``node`` dequantizes to float32; the node itself where it does something else."""
    if (
        node is None
        or not qd.is_dequantize(node)
        or node.kwargs.get("out_dtype") not in (None, torch.float32)
    ):
        return node
    args: tuple[Any, ...] = node.args
    axis = args[3] if node.target is qd.DEQUANTIZE_PER_CHANNEL else None
    return QuantizedOperand(args[0], args[1], args[2], axis, *args[-3:])


def not_an_activation(operand: object) -> Refusal | None:
    """Why ``operand`` cannot be read as integers with one scale, or None."""
    if not isinstance(operand, QuantizedOperand):
        name = f"%{operand.name}" if isinstance(operand, Node) else repr(operand)
        return Refusal("operand-not-quantized", f"{name} is not dequantized to float32")
    if operand.axis is not None:
        return Refusal("activation-per-channel", f"%{operand.node.name} has a scale a channel")
    return None


def _bounds(lowest: str, highest: str) -> Callable[[Node], tuple[object, object]]:
    return lambda node: (argument(node, lowest), argument(node, highest))


CLAMPS: Final[dict[object, Callable[[Node], tuple[object, object]]]] = {
    _aten.relu.default: lambda node: (0.0, None),
    _aten.relu6.default: lambda node: (0.0, 6.0),
    _aten.hardtanh.default: _bounds("min_val", "max_val"),
    _aten.clamp.default: _bounds("min", "max"),
    _aten.clamp_min.default: lambda node: (argument(node, "min"), None),
    _aten.clamp_max.default: lambda node: (None, argument(node, "max")),
}
"""The operators that keep values within bounds."""


def bounds_of(node: Node) -> tuple[float, float] | None:
    """The bounds that ``node`` keeps the values of its input within; None where it does something else."""
    read = CLAMPS.get(node.target)
    if read is None:
        return None
    low, high = read(node)
    if not all(bound is None or isinstance(bound, (int, float)) for bound in (low, high)):
        return None  # known when the model runs
    lowest = -math.inf if low is None else float(low)  # pyright: ignore[reportArgumentType]
    highest = math.inf if high is None else float(high)  # pyright: ignore[reportArgumentType]
    return (lowest, highest) if lowest <= highest else None


def narrowed(quantization: OutputQuantization, bounds: tuple[float, float]) -> OutputQuantization:
    """``quantization`` of values that were kept within ``bounds`` before.

    Rounding never changes the order of values, so quantize(clamp(x, a, b)) is quantize(x) clamped to
    [quantize(a), quantize(b)]: ReLU is a clamp at the zero point.
    """
    low, high = qd.QUANTIZE_PER_TENSOR(torch.tensor(bounds), *attrs.astuple(quantization)).tolist()
    return attrs.evolve(quantization, quant_min=low, quant_max=high)


@attrs.frozen(eq=False)
class Tail:
    """What follows an operator: clamps, and the quantize that they end at.

    Args:
        clamps: the operators between, each the only reader of the one before.
        quantize: the node that quantizes.
        quantization: its parameters, its range narrowed by the clamps.
    """

    clamps: tuple[Node, ...]
    quantize: Node
    quantization: OutputQuantization


def tail_at(quantize: Node, clamps: Sequence[Node] = ()) -> Tail:
    """The tail of ``clamps`` and ``quantize`` behind them."""
    arguments: Any = quantize.args[1:]
    quantization = OutputQuantization(*arguments)
    for clamp in reversed(clamps):
        bounds = bounds_of(clamp)
        assert bounds is not None
        quantization = narrowed(quantization, bounds)
    return Tail(tuple(clamps), quantize, quantization)


def find_tail(operator: Node) -> Tail | None:
    """What follows ``operator``; None where its result, or that of a clamp, is read otherwise."""
    clamps: list[Node] = []
    node = operator
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target is qd.QUANTIZE_PER_TENSOR:
            return tail_at(node, clamps)
        if bounds_of(node) is None:
            return None
        clamps.append(node)
    return None
