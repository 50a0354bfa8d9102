"""The oneDNN kernels that X86 patterns lower to, and the ways to call them."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch.fx import Node

from ...ir.attributes import get_tensor
from ...ir.quantized_decomposed import is_dequantize
from ...ir.specs import dtype_range
from ...matchers.operator_pattern import KernelCall, QuantizedOperand, Refusal
from .accumulator import may_overwrite, memory_of
from .convolution import conv_arguments, refuses_geometry
from .post_operators import PostOperator, clamping_arguments, post_arguments
from .prepack import QLINEAR_PREPACK, pack_weight
from .saturation import refuses_saturation
from .unfrozen_linear import register_lowering

__all__ = ["IntegerOperator", "QConv", "QConvAdd", "QLinear"]

_onednn = torch.ops.onednn
_aten = torch.ops.aten


def _refuses_operands(call: KernelCall) -> Refusal | None:
    """What all oneDNN kernels ask of their input and weight."""
    x, weight = call.quantized("x"), call.quantized("weight")
    if x.dtype is not torch.uint8:
        return Refusal("activation-not-uint8")
    if weight.dtype is not torch.int8 or weight.axis != 0:
        return Refusal("weight-not-int8-per-output-channel")
    if weight.zero_point.op != "get_attr" or get_tensor(call.gm, weight.zero_point.target).any():
        return Refusal("weight-not-symmetric")
    return refuses_saturation(call)


def _output_arguments(call: KernelCall) -> tuple[float, int, torch.dtype]:
    output = call.quantization
    return (1.0, 0, torch.float32) if output is None else (output.scale, output.zero_point, output.dtype)


def _fills_dtype(call: KernelCall) -> bool:
    """Whether the result may be anything that its dtype holds, as that of a kernel may."""
    output = call.quantization
    return output is None or (output.quant_min, output.quant_max) == dtype_range(output.dtype)


def _clamped(call: KernelCall, result: Node) -> Node:
    """``result`` of a kernel in the range that the graph quantizes to."""
    output = call.quantization
    if output is None or _fills_dtype(call):
        return result
    return call.graph.call_function(_aten.clamp.default, (result, output.quant_min, output.quant_max))


def _unary(call: KernelCall, target: Any, arguments: tuple[Any, ...], post: PostOperator | None) -> Node:
    """The kernel ``target`` with ``post`` behind it, its result in the range that the graph quantizes to."""
    clamping = None if _fills_dtype(call) else clamping_arguments(call, post)
    if clamping is not None:
        return call.graph.call_function(target, (*arguments, *clamping))
    return _clamped(call, call.graph.call_function(target, (*arguments, *post_arguments(call, post))))


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
        return _refuses_operands(call) or refuses_geometry(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert packing and convolution."""
        conv = conv_arguments(call)
        arguments = (*conv.head, conv.bias, *conv.geometry, *_output_arguments(call))
        return _unary(call, _onednn.qconv_pointwise.default, arguments, self.post)


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
        refusal = _refuses_operands(call) or refuses_geometry(call)
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
        # oneDNN accumulates in channels-last only. contiguous() of what is so already is free.
        layout = _aten.contiguous.default if may_overwrite(call, other.node) else _aten.clone.default
        accumulator = call.graph.call_function(layout, (other.node,), {"memory_format": torch.channels_last})
        accumulator.meta = dict(other.node.meta)
        arguments = (*conv.head, accumulator, conv.bias, *conv.geometry, *_output_arguments(call))
        result = call.graph.call_function(
            _onednn.qconv2d_pointwise.binary,
            (*arguments, other.scale, other.zero_point, "sum", 1.0, *post_arguments(call, self.post)),
        )
        return _clamped(call, result)


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
        return _refuses_operands(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert packing and linear."""
        x, weight = call.quantized("x"), call.quantized("weight")
        register_lowering()
        linear = call.node_calling(_aten.linear.default)
        packed = pack_weight(call, QLINEAR_PREPACK, linear)
        head = (x.node, x.scale, x.zero_point, packed, weight.scale, weight.zero_point)
        bias: Any = call.operands["bias"]
        arguments = (*head, bias, *_output_arguments(call))
        result = _unary(call, _onednn.qlinear_pointwise.default, arguments, self.post)
        return _in_full_shape(call, linear, x.node, result)


def _in_full_shape(call: KernelCall, linear: Node, x: Node, result: Node) -> Node:
    """``result`` with all its dimensions: of an empty batch the kernel gives two, whatever it was handed."""
    value = linear.meta.get("val")
    if not isinstance(value, torch.Tensor) or all(isinstance(size, int) for size in value.shape):
        return result
    *batch, channels = value.shape
    sizes = [
        size if isinstance(size, int) else call.graph.call_function(_aten.sym_size.int, (x, i))
        for i, size in enumerate(batch)
    ]
    return call.graph.call_function(_aten.view.default, (result, [*sizes, channels]))


@attrs.frozen
class IntegerOperator:
    """The float operator itself, applied to the integers: exact for whatever only moves or picks values.

    Args:
        widen: compute in int32; ATen's pooling has no kernel for 8-bit tensors of every layout.
    """

    widen: bool = False
    name: str = "integer operator"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """Nothing: the pattern demands equal parameters already."""
        return None

    def emit(self, call: KernelCall) -> Node:
        """Insert the operator on the integer tensors."""
        (operator,) = call.nodes
        dequantized = [node for node in operator.all_input_nodes if is_dequantize(node)]
        integers = {node: self._integer(call, call.quantized(node.name)) for node in dequantized}
        new = call.graph.node_copy(operator, lambda node: integers.get(node, node))
        # The float result's value would be wrong here.
        new.meta = {}
        if self.widen:
            assert call.quantization is not None
            new = call.graph.call_function(_aten.to.dtype, (new, call.quantization.dtype))
        return new

    def _integer(self, call: KernelCall, operand: QuantizedOperand) -> Node:
        if not self.widen:
            return operand.node
        return call.graph.call_function(_aten.to.dtype, (operand.node, torch.int32))
