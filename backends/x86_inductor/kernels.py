"""The oneDNN kernels that X86 patterns lower to, and the ways to call them."""

from __future__ import annotations

from typing import Any, Final

import attrs
import torch
from torch.fx import Node

from ...ir.aliasing import aliased_inputs
from ...ir.attributes import get_tensor
from ...ir.quantized_decomposed import is_dequantize
from ...ir.schema import argument
from ...matchers.operator_pattern import KernelCall, QuantizedOperand
from ...passes.pack_weights import PACK_KEY
from .prepack import QCONV_PREPACK, QLINEAR_PREPACK, register_fakes
from .unfrozen_linear import register_lowering

__all__ = ["IntegerOperator", "QConv", "QConvAdd", "QLinear"]

_onednn = torch.ops.onednn
_aten = torch.ops.aten
_CONVOLUTIONS: Final = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)

# The post-operator takes no scalars; an empty list would do as well, but torch.export.save cannot write one.
_NO_SCALARS: Final = [0.0]


def _refuses_operands(call: KernelCall) -> str | None:
    """What all oneDNN kernels ask of their input and weight."""
    x, weight = call.operands["x"], call.operands["weight"]
    assert isinstance(x, QuantizedOperand)
    assert isinstance(weight, QuantizedOperand)
    if x.dtype is not torch.uint8:
        return "activation-not-uint8"
    if weight.dtype is not torch.int8 or weight.axis != 0:
        return "weight-not-int8-per-output-channel"
    if weight.zero_point.op != "get_attr" or get_tensor(call.gm, weight.zero_point.target).any():
        return "weight-not-symmetric"
    return None


def _output_arguments(call: KernelCall) -> tuple[float, int, torch.dtype]:
    return call.output_qparams or (1.0, 0, torch.float32)


def _input_shape(call: KernelCall, operator: Node) -> list[int] | None:
    """The shape of the input, as a hint for the weight layout; None where it is not known before the run."""
    source = operator.args[0]
    value = source.meta.get("val") if isinstance(source, Node) else None
    if isinstance(value, torch.Tensor) and all(isinstance(s, int) for s in value.shape):
        return list(value.shape)
    return None


def _pack(call: KernelCall, target: Any, arguments: tuple[Any, ...], weight: QuantizedOperand) -> Node:
    register_fakes()
    packed = call.graph.call_function(target, arguments)
    packed.meta = {k: v for k, v in weight.node.meta.items() if k != "val"} | {PACK_KEY: True}
    return packed


@attrs.frozen
class _ConvArguments:
    head: tuple[Any, ...]
    bias: Any
    geometry: tuple[Any, ...]


def _convolution(call: KernelCall) -> _ConvArguments:
    x, weight = call.operands["x"], call.operands["weight"]
    assert isinstance(x, QuantizedOperand)
    assert isinstance(weight, QuantizedOperand)
    conv = call.node_calling(*_CONVOLUTIONS)
    geometry = tuple(argument(conv, name) for name in ("stride", "padding", "dilation", "groups"))
    packed = _pack(
        call,
        QCONV_PREPACK,
        (weight.node, weight.scale, x.scale, x.zero_point, *geometry, _input_shape(call, conv)),
        weight,
    )
    head = (x.node, x.scale, x.zero_point, packed, weight.scale, weight.zero_point)
    return _ConvArguments(head, call.operands["bias"], geometry)


@attrs.frozen
class QConv:
    """``onednn.qconv_pointwise``: convolution, then a unary post-operator, then requantization.

    Args:
        unary: oneDNN's name of the post-operator, "none" for none.
    """

    unary: str = "none"
    name: str = "onednn.qconv_pointwise"

    def refuses(self, call: KernelCall) -> str | None:
        """None, or why the operands do not fit."""
        return _refuses_operands(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert packing and convolution."""
        conv = _convolution(call)
        arguments = (*conv.head, conv.bias, *conv.geometry, *_output_arguments(call))
        return call.graph.call_function(
            _onednn.qconv_pointwise.default, (*arguments, self.unary, _NO_SCALARS, "")
        )


@attrs.frozen
class QConvAdd:
    """``onednn.qconv2d_pointwise.binary``: convolution accumulated onto a tensor, then a post-operator.

    The kernel writes its result over the tensor it adds. Where that is still read elsewhere, a copy is made.

    Args:
        unary: oneDNN's name of the post-operator behind the sum, "none" for none.
    """

    unary: str = "none"
    name: str = "onednn.qconv2d_pointwise.binary"

    def refuses(self, call: KernelCall) -> str | None:
        """None, or why the operands do not fit."""
        other = call.operands["other"]
        assert isinstance(other, QuantizedOperand)
        if call.output_qparams is None or other.dtype is not call.output_qparams[2]:
            return "accumulator-dtype-differs"
        return _refuses_operands(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert packing, the accumulator's layout and the convolution."""
        other = call.operands["other"]
        assert isinstance(other, QuantizedOperand)
        conv = _convolution(call)
        # oneDNN accumulates in channels-last only. contiguous() of what is so already is free.
        layout = _aten.contiguous.default if _may_overwrite(call, other.node) else _aten.clone.default
        accumulator = call.graph.call_function(layout, (other.node,), {"memory_format": torch.channels_last})
        accumulator.meta = dict(other.node.meta)
        arguments = (*conv.head, accumulator, conv.bias, *conv.geometry, *_output_arguments(call))
        return call.graph.call_function(
            _onednn.qconv2d_pointwise.binary,
            (*arguments, other.scale, other.zero_point, "sum", 1.0, self.unary, _NO_SCALARS, ""),
        )


def _may_overwrite(call: KernelCall, node: Node) -> bool:
    """Whether nothing reads the memory of ``node`` after the kernel, the caller of the model included."""
    if node.op != "call_function" or aliased_inputs(node):
        return False
    for user in node.users:
        if is_dequantize(user) and all(reader in call.nodes for reader in user.users):
            continue  # this very use
        if not user < call.output or node in aliased_inputs(user):
            return False
    return True


@attrs.frozen
class QLinear:
    """``onednn.qlinear_pointwise``: linear, then a unary post-operator, then requantization.

    Args:
        unary: oneDNN's name of the post-operator, "none" for none.
    """

    unary: str = "none"
    name: str = "onednn.qlinear_pointwise"

    def refuses(self, call: KernelCall) -> str | None:
        """None, or why the operands do not fit."""
        return _refuses_operands(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert packing and linear."""
        x, weight = call.operands["x"], call.operands["weight"]
        assert isinstance(x, QuantizedOperand)
        assert isinstance(weight, QuantizedOperand)
        register_lowering()
        linear = call.node_calling(_aten.linear.default)
        packed = _pack(call, QLINEAR_PREPACK, (weight.node, _input_shape(call, linear)), weight)
        head = (x.node, x.scale, x.zero_point, packed, weight.scale, weight.zero_point)
        bias: Any = call.operands["bias"]
        arguments = (*head, bias, *_output_arguments(call))
        return call.graph.call_function(
            _onednn.qlinear_pointwise.default, (*arguments, self.unary, _NO_SCALARS, "")
        )


@attrs.frozen
class IntegerOperator:
    """The float operator itself, applied to the integers: exact for whatever only moves or picks values.

    Args:
        widen: compute in int32; ATen's pooling has no kernel for 8-bit tensors of every layout.
    """

    widen: bool = False
    name: str = "integer operator"

    def refuses(self, call: KernelCall) -> str | None:
        """Nothing: the pattern demands equal parameters already."""
        return None

    def emit(self, call: KernelCall) -> Node:
        """Insert the operator on the integer tensors."""
        (operator,) = call.nodes
        graph = call.graph
        integers = {
            source: self._integer(call, operand)
            for source, operand in zip(operator.all_input_nodes, call.operands.values(), strict=True)
        }
        new = graph.node_copy(operator, lambda node: integers[node])
        if self.widen:
            assert call.output_qparams is not None
            new = graph.call_function(_aten.to.dtype, (new, call.output_qparams[2]))
        new.meta = dict(call.output.meta)
        return new

    def _integer(self, call: KernelCall, operand: object) -> Node:
        assert isinstance(operand, QuantizedOperand)
        if not self.widen:
            return operand.node
        return call.graph.call_function(_aten.to.dtype, (operand.node, torch.int32))
