"""What oneDNN's int8 kernels ask of their operands, and the form in which they take a weight's scales."""

from __future__ import annotations

from typing import Final

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node

from ...ir.attributes import find_attribute, get_tensor, is_constant, set_tensor
from ...ir.meta import ID_KEY, KERNEL_KEY, ORIGIN_KEY
from ...matchers.operator_pattern import KernelCall, QuantizedOperand, Refusal
from .cpu import writes_bfloat16
from .saturation import refuses_saturation

__all__ = ["bias_parameter", "constant_like", "refuses_operands", "weight_parameters"]

_OWN: Final = frozenset({ID_KEY, KERNEL_KEY, ORIGIN_KEY})
"""What says who a node is."""


def refuses_operands(call: KernelCall) -> Refusal | None:
    """What all int8 kernels ask of their input and weight."""
    x, weight = call.quantized("x"), call.quantized("weight")
    if x.dtype is not torch.uint8:
        return Refusal("activation-not-uint8")
    return refuses_weight(call, weight) or refuses_saturation(call)


def refuses_weight(call: KernelCall, weight: QuantizedOperand) -> Refusal | None:
    """None, or why ``weight`` is not int8, symmetric, and scaled a tensor or an output channel."""
    if weight.dtype is not torch.int8 or weight.axis not in (0, None):
        return Refusal("weight-not-int8-per-output-channel")
    if not _is_symmetric(call, weight.zero_point):
        return Refusal("weight-not-symmetric")
    return None


def _is_symmetric(call: KernelCall, zero_point: int | Node) -> bool:
    if isinstance(zero_point, int):
        return zero_point == 0
    return zero_point.op == "get_attr" and not get_tensor(call.gm, str(zero_point.target)).any()


def weight_parameters(call: KernelCall) -> tuple[Node, Node]:
    """The scales and zero points of the weight, one an output channel.

    Of a weight with one scale for all they become constants of the module: ``fc.weight_int8_scales``.
    """
    weight = call.quantized("weight")
    if weight.axis is not None:
        return weight.scale, weight.zero_point
    channels = len(get_tensor(call.gm, str(weight.node.target)))
    scales = torch.full((channels,), weight.scale)
    return (
        _constant(call, f"{weight.node.target}_scales", scales),
        _constant(call, f"{weight.node.target}_zero_points", torch.zeros(channels, dtype=torch.int64)),
    )


def bias_parameter(call: KernelCall) -> Node | None:
    """The bias, in float32 where kernels write that for bfloat16.

    With a bias of another dtype than the result, oneDNN multiplies int8 matrices by reference code. The copy
    is a constant of the module: ``fc.bias_float32``.
    """
    bias = call.float("bias")
    if bias is None or writes_bfloat16() or not is_constant(bias):
        return bias
    value = get_tensor(call.gm, str(bias.target))
    if value.dtype is not torch.bfloat16:
        return bias
    return _constant(call, f"{bias.target}_float32", value.detach().float())


def constant_like(graph: Graph, target: str, tensor: torch.Tensor, like: Node) -> Node:
    """A node that reads the attribute ``target``, which is ``tensor``, with the metadata of ``like``."""
    node = graph.get_attr(target)
    node.meta = {key: kept for key, kept in like.meta.items() if key not in _OWN}
    value = like.meta.get("val")
    if isinstance(value, FakeTensor):
        with value.fake_mode:
            node.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return node


def _constant(call: KernelCall, target: str, value: torch.Tensor) -> Node:
    # A tied weight is met again. A suffix is for another tensor that has the name already.
    while (found := find_attribute(call.gm, target)) is not None:
        if isinstance(found, torch.Tensor) and torch.equal(found, value):
            break
        target = f"{target}_"
    else:
        set_tensor(call.gm, target, value)
    return call.graph.get_attr(target)
