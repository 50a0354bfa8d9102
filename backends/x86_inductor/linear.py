"""The linears of oneDNN that X86 patterns lower to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import torch
from torch.fx import Node

from ...ir.bodies import is_body
from ...matchers.operator_pattern import KernelCall, Mode, Refusal
from .operands import bias_parameter, refuses_operands, weight_parameters
from .post_operators import PostOperator, post_arguments
from .prepack import QLINEAR_PREPACK, known_shape, pack_weight
from .requantize import in_range, output_arguments, with_post_operator

__all__ = ["QLinear", "QLinearAdd", "size_arguments"]

_aten = torch.ops.aten
_qlinear = torch.ops.onednn.qlinear_pointwise


@attrs.frozen
class QLinear:
    """``onednn.qlinear_pointwise``: linear, then a unary post-operator, then requantization.

    Args:
        post: the post-operator, None for none.
    """

    post: PostOperator | None = None
    name: str = "onednn.qlinear_pointwise"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the operands do not fit."""
        return refuses_operands(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert packing and linear."""
        target = _qlinear.tensor if call.mode is Mode.DYNAMIC else _qlinear.default
        arguments = (*_head(call), bias_parameter(call))
        return _in_full_shape(call, with_post_operator(call, target, arguments, self.post))


@attrs.frozen
class QLinearAdd:
    """``onednn.qlinear_pointwise.binary``: linear, plus a float tensor, a post-operator, requantization.

    Args:
        post: the post-operator behind the sum, None for none; the kernel knows relu only.
    """

    post: PostOperator | None = None
    name: str = "onednn.qlinear_pointwise.binary"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the operands do not fit."""
        refusal = refuses_operands(call)
        if refusal is None and call.quantization is None:
            # The compiler adds in the loop of what reads the sum, a normalization say, which costs nothing.
            return Refusal("sum-read-in-float")
        if refusal is None and is_body(call.gm):
            return Refusal("kernel-not-compiled-in-bodies")
        return refusal

    def emit(self, call: KernelCall) -> Node:
        """Insert packing and linear."""
        head = _head(call)
        # Of other layouts the kernel takes the numbers in the wrong order. Where it is dense, this is free.
        other = call.graph.call_function(
            _aten.contiguous.default, (call.float("other"),), {"memory_format": torch.contiguous_format}
        )
        arguments = (*head, other, bias_parameter(call), *output_arguments(call))
        post = post_arguments(call, self.post)
        result = call.graph.call_function(_qlinear.binary, (*arguments, 1.0, 0, "add", 1.0, *post))
        return _in_full_shape(call, in_range(call, result))


def _head(call: KernelCall) -> tuple[Any, ...]:
    x = call.quantized("x")
    packed = pack_weight(call, QLINEAR_PREPACK, known_shape(call.node_calling(_aten.linear.default).args[0]))
    return (x.node, x.scale, x.zero_point, packed, *weight_parameters(call))


def _in_full_shape(call: KernelCall, result: Node) -> Node:
    """``result`` with all its dimensions: of an empty batch the kernel gives two, whatever it was handed."""
    value = call.node_calling(_aten.linear.default).meta.get("val")
    if not isinstance(value, torch.Tensor) or all(isinstance(size, int) and size for size in value.shape):
        return result
    sizes = [*size_arguments(call.quantized("x").node, value.shape[:-1]), value.shape[-1]]
    return call.graph.call_function(_aten.view.default, (result, sizes))


def size_arguments(x: Node, sizes: Iterable[int | torch.SymInt]) -> list[int | Node]:
    """``sizes``, which are the first ones of ``x``, as arguments: those that the run tells, as nodes."""
    return [size if isinstance(size, int) else _size(x, i, size) for i, size in enumerate(sizes)]


def _size(x: Node, dim: int, value: torch.SymInt) -> Node:
    size = x.graph.call_function(_aten.sym_size.int, (x, dim))
    size.meta["val"] = value
    return size
