"""The oneDNN kernels where activations are signed: called as on X86, with int8 in place of uint8."""

from __future__ import annotations

import attrs
import torch
from torch.fx import Node

from ..ir.attributes import get_tensor
from ..matchers.operator_pattern import KernelCall, QuantizedOperand, Refusal
from .x86_inductor.accumulator import memory_of
from .x86_inductor.convolution import refuses_geometry
from .x86_inductor.kernels import QConv, QConvAdd, QLinear

__all__ = ["SignedKernel"]


@attrs.frozen
class SignedKernel:
    """A oneDNN kernel of a device that multiplies int8 by int8.

    Args:
        kernel: how the operator is called, which is the same on every device.
        weight_axis: the axis that weights have a scale each on; None for one scale a weight.
    """

    kernel: QConv | QConvAdd | QLinear
    weight_axis: int | None

    @property
    def name(self) -> str:
        """The name of the operator."""
        return self.kernel.name

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the operands do not fit."""
        refusal = self._refuses_operands(call)
        if refusal is None and not isinstance(self.kernel, QLinear):
            refusal = refuses_geometry(call)
        if refusal is None and isinstance(self.kernel, QConvAdd):
            refusal = _refuses_accumulator(call)
        return refusal

    def emit(self, call: KernelCall) -> Node:
        """Insert packing and kernel."""
        return self.kernel.emit(call)

    def _refuses_operands(self, call: KernelCall) -> Refusal | None:
        x, weight = call.quantized("x"), call.quantized("weight")
        if x.dtype is not torch.int8:
            return Refusal("activation-not-int8")
        if weight.dtype is not torch.int8 or weight.axis != self.weight_axis:
            each = "per-tensor" if self.weight_axis is None else "per-output-channel"
            return Refusal(f"weight-not-int8-{each}")
        return None if _is_symmetric(call, weight) else Refusal("weight-not-symmetric")


def _is_symmetric(call: KernelCall, weight: QuantizedOperand) -> bool:
    zero_point = weight.zero_point
    if isinstance(zero_point, int):
        return zero_point == 0
    return zero_point.op == "get_attr" and not get_tensor(call.gm, zero_point.target).any()


def _refuses_accumulator(call: KernelCall) -> Refusal | None:
    x, other = call.quantized("x"), call.quantized("other")
    if memory_of(x.node) is memory_of(other.node):
        return Refusal("accumulator-is-input")
    if call.quantization is None:
        return Refusal("sum-read-in-float")
    return None if other.dtype is call.quantization.dtype else Refusal("accumulator-dtype-differs")
