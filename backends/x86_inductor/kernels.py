"""The convolutions of oneDNN that X86 patterns lower to, and operators on integers."""

from __future__ import annotations

import operator

import attrs
import torch
from torch.fx import Node

from ...ir.quantized_decomposed import is_dequantize
from ...ir.schema import argument
from ...matchers.operator_pattern import KernelCall, QuantizedOperand, Refusal
from .accumulator import may_overwrite, memory_of
from .convolution import conv_arguments, per_dimension, refuses_geometry
from .int8_results import holds_in_int8, is_written_as_int8, reinterpreted
from .linear import QLinear, QLinearAdd
from .operands import refuses_operands
from .post_operators import PostOperator, post_arguments
from .requantize import in_range, output_arguments, with_post_operator

__all__ = ["IntegerOperator", "MaxPool2d", "QConv", "QConvAdd", "QLinear", "QLinearAdd"]

_onednn = torch.ops.onednn
_aten = torch.ops.aten
_quantized = torch.ops.quantized


@attrs.frozen
class QConv:
    """``onednn.qconv_pointwise``: convolution, then a unary post-operator, then requantization.

    Args:
        post: the post-operator, None for none.
    """

    post: PostOperator | None = None
    name: str = "onednn.qconv_pointwise"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the operands do not fit."""
        return refuses_operands(call) or refuses_geometry(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert packing and convolution."""
        conv = conv_arguments(call)
        arguments = (*conv.head, conv.bias, *conv.geometry)
        target = _onednn.qconv_pointwise.default
        in_int8 = is_written_as_int8(call, self.post)
        if len(conv.geometry[0]) == 2:
            return with_post_operator(call, target, arguments, self.post, in_int8)
        # Only with two dimensions does the kernel clamp.
        output = (*output_arguments(call, in_int8), *post_arguments(call, self.post))
        result = call.graph.call_function(target, (*arguments, *output))
        if _may_be_empty_line(call):
            # One dimension is computed as two, and of an empty batch the kernel gives both.
            result = call.graph.call_function(_aten.flatten.using_ints, (result, 2, -1))
        return in_range(call, result, in_int8)


def _may_be_empty_line(call: KernelCall) -> bool:
    """Whether the convolution is of one dimension, and its batch may be empty."""
    if call.nodes[0].target is not _aten.conv1d.default:
        return False
    value = call.output.meta.get("val")
    batch = value.shape[0] if isinstance(value, torch.Tensor) else None
    return not (isinstance(batch, int) and batch > 0)


@attrs.frozen
class QConvAdd:
    """``onednn.qconv2d_pointwise.binary``: convolution accumulated onto a tensor, then a post-operator.

    The kernel writes its result over the tensor it adds. Where that is still read elsewhere, a copy is made.

    Args:
        post: the post-operator behind the sum, None for none; the kernel knows relu only.
    """

    post: PostOperator | None = None
    name: str = "onednn.qconv2d_pointwise.binary"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the operands do not fit."""
        x, other = call.quantized("x"), call.quantized("other")
        refusal = refuses_operands(call) or refuses_geometry(call)
        if refusal is not None:
            return refusal
        if memory_of(x.node) is memory_of(other.node):
            # Not a matter of copying it: Inductor drops the copy, and then reads what is being written.
            return Refusal("accumulator-is-input")
        if call.quantization is None:
            return Refusal("sum-read-in-float")
        if other.dtype is not call.quantization.dtype:
            return Refusal("accumulator-dtype-differs")
        return None

    def emit(self, call: KernelCall) -> Node:
        """Insert packing, the accumulator's layout and the convolution."""
        other = call.quantized("other")
        conv = conv_arguments(call)
        in_place = may_overwrite(call, other.node)
        # It adds what it reads in the dtype that it writes.
        in_int8 = in_place and holds_in_int8(other) and is_written_as_int8(call, self.post)
        integers = reinterpreted(call, other.node, torch.int8) if in_int8 else other.node
        # oneDNN accumulates in channels-last only. contiguous() of what is so already is free.
        layout = _aten.contiguous.default if in_place else _aten.clone.default
        accumulator = call.graph.call_function(layout, (integers,), {"memory_format": torch.channels_last})
        output = output_arguments(call, in_int8)
        arguments = (*conv.head, accumulator, conv.bias, *conv.geometry, *output)
        result = call.graph.call_function(
            _onednn.qconv2d_pointwise.binary,
            (*arguments, other.scale, other.zero_point, "sum", 1.0, *post_arguments(call, self.post)),
        )
        return in_range(call, result, in_int8)


@attrs.frozen
class IntegerOperator:
    """The float operator itself, applied to the integers: exact for whatever only moves or picks values."""

    name: str = "integer operator"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """Nothing: the pattern demands equal parameters already."""
        return None

    def emit(self, call: KernelCall) -> Node:
        """Insert the operator on the integer tensors, and what picks one of its results."""
        moves, *picks = call.nodes
        with call.graph.inserting_before(moves):
            new = _on_integers(call, moves)
        for pick in picks:
            new = call.graph.call_function(operator.getitem, (new, pick.args[1]))
        return new


def _on_integers(call: KernelCall, moves: Node) -> Node:
    dequantized = [node for node in moves.all_input_nodes if is_dequantize(node)]
    integers = {node: call.quantized(node.name).node for node in dequantized}
    new = call.graph.node_copy(moves, lambda node: integers.get(node, node))
    # The float result's value would be wrong here.
    new.meta = {}
    for same in integers[dequantized[0]].users:
        # Several results of one call are picked one by one.
        if same is not new and (same.target, same.args, same.kwargs) == (new.target, new.args, new.kwargs):
            if new < same:
                # Equal calls may stand apart, and what reads the first of them before the second. The one
                # that was there stays, as its name was told.
                new.prepend(same)
            call.graph.erase_node(new)
            return same
    return new


@attrs.frozen
class MaxPool2d:
    """``quantized.max_pool2d``, which takes plain uint8 tensors too; of others, ``max_pool2d`` in int32."""

    name: str = "quantized.max_pool2d"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """Nothing: the pattern demands equal parameters already."""
        return None

    def emit(self, call: KernelCall) -> Node:
        """Insert the pooling of integers."""
        (pool,) = call.nodes
        (image,) = (operand for operand in call.operands.values() if isinstance(operand, QuantizedOperand))
        kernel, stride, padding, dilation = (
            # The kernel reads two of each, whatever it is given.
            per_dimension(pool, name, 2)
            for name in ("kernel_size", "stride", "padding", "dilation")
        )
        geometry = (kernel, stride or kernel, padding, dilation, argument(pool, "ceil_mode"))
        if image.dtype is torch.uint8 and _rank(pool) == 4:
            return call.graph.call_function(_quantized.max_pool2d.default, (image.node, *geometry))
        # ATen pools 8-bit tensors of some layouts only.
        wide = call.graph.call_function(_aten.to.dtype, (image.node, torch.int32))
        largest = call.graph.call_function(_aten.max_pool2d.default, (wide, *geometry))
        return call.graph.call_function(_aten.to.dtype, (largest, image.dtype))


def _rank(node: Node) -> int | None:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else None
